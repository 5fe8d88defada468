"""Amounts that a client adds to tokens, alone or at the end of token sequences."""

from __future__ import annotations

from typing import Self

import numpy as np
from torch import Tensor

from server.engine.batch_inputs import IntArray
from server.engine.processors.base import FloatArray, LogitsProcessor, Start, add

Tail = tuple[int, ...]


class LogitBias(LogitsProcessor):
    """Add to the logits of single tokens; minus infinity bans one."""

    def __init__(self, biases: dict[int, float]) -> None:
        self.ids = np.array(list(biases), dtype=np.int64)
        self.amounts = np.array(list(biases.values()), dtype=np.float64)

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        return cls(start.params.logit_bias) if start.params.logit_bias else None

    def accept(self, token_id: int) -> None:
        """The biases stay as they are."""

    def fork(self) -> Self:
        return self

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        add(logits_SV, rows, [p.ids for p in processors], [p.amounts for p in processors])


class SequenceTable:
    """Biases of token sequences by what must be there for their last token to count; the same for all forks."""

    def __init__(self, sequence_bias: tuple[tuple[tuple[int, ...], float], ...]) -> None:
        biases: dict[Tail, dict[int, float]] = {}
        for (*before, last), bias in sequence_bias:
            tail = biases.setdefault(tuple(before), {})
            if tail.get(last) != -np.inf:  # a ban stands; of other biases of a sequence the last counts
                tail[last] = bias
        self.biases = biases
        self.lengths = sorted({len(tail) for tail in biases} - {0})
        self.always = _arrays(biases.get((), {}))

    def now(self, last_ids: list[int]) -> tuple[IntArray, FloatArray]:
        """Tokens and biases where the sequence ends with ``last_ids``."""
        tails = [tuple(last_ids[-n:]) for n in self.lengths if n <= len(last_ids)]
        met = [self.biases[tail] for tail in tails if tail in self.biases]
        if not met:
            return self.always
        total = dict(self.biases.get((), {}))
        for tail_biases in met:
            for token_id, bias in tail_biases.items():
                # Not the sum itself: minus infinity and infinity have none.
                total[token_id] = -np.inf if -np.inf in (bias, total.get(token_id)) else bias + total.get(token_id, 0.0)
        return _arrays(total)


class SequenceBias(LogitsProcessor):
    """Add to the last token of a token sequence where the tokens before it are at the end of prompt and output."""

    def __init__(self, table: SequenceTable, token_ids: IntArray) -> None:
        self.table = table
        self.num_kept = max(table.lengths, default=0)
        self.last_ids: list[int] = token_ids[-self.num_kept :].tolist() if self.num_kept else []

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        biases = start.params.sequence_bias
        return cls(SequenceTable(biases), start.token_ids) if biases else None

    def accept(self, token_id: int) -> None:
        # A new list each time, for forks share the one that was.
        if self.num_kept:
            self.last_ids = [*self.last_ids[-self.num_kept + 1 :], token_id] if self.num_kept > 1 else [token_id]

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        ids, amounts = zip(*(p.table.now(p.last_ids) for p in processors), strict=True)
        add(logits_SV, rows, ids, amounts)


def _arrays(biases: dict[int, float]) -> tuple[IntArray, FloatArray]:
    return np.array(list(biases), dtype=np.int64), np.array(list(biases.values()), dtype=np.float64)
