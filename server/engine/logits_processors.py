"""Rules that change a sequence's logits before the sampler sees them. Knows nothing of temperature or drawing.

A sequence holds only the processors it asked for, in the order of `PROCESSORS`; most hold none and cost nothing.
Each class changes the logits of all its rows in one gather and one scatter over the few token ids concerned.
A new rule (a grammar's mask, banned words) is one more class in `PROCESSORS`.

Dimension key
    S  sequences that sample
    V  vocabulary size
    N  (row, token id) pairs that a rule touches
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from server.engine.batch_inputs import IntArray, on_device
from server.protocol import SamplingParams


class LogitsProcessor(ABC):
    """One rule and what it remembers of one sequence."""

    is_spent = False
    """Whether it will change nothing any more."""

    @classmethod
    @abstractmethod
    def for_sequence(
        cls, params: SamplingParams, ending_ids: frozenset[int], prompt_ids: IntArray, output_ids: IntArray
    ) -> Self | None:
        """The rule's state for a sequence, or None where the parameters are neutral."""

    @abstractmethod
    def accept(self, token_id: int) -> None:
        """The sequence's output grew by ``token_id``."""

    @classmethod
    @abstractmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        """Change ``logits_SV[rows]`` in place; ``processors`` belong to ``rows``."""


class TokenCounts:
    """How often each token was seen, as arrays that grow with the sequence."""

    def __init__(self, token_ids: IntArray) -> None:
        unique, counts = np.unique(token_ids, return_counts=True)
        self._ids = unique.astype(np.int64)
        self._counts = counts.astype(np.float32)
        self._size = len(unique)
        self._index = {token_id: i for i, token_id in enumerate(unique.tolist())}

    @property
    def ids(self) -> IntArray:
        return self._ids[: self._size]

    @property
    def counts(self) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return self._counts[: self._size]

    def add(self, token_id: int) -> None:
        index = self._index.get(token_id)
        if index is not None:
            self._counts[index] += 1
            return
        if self._size == len(self._ids):
            spare = max(16, self._size)
            self._ids = np.concatenate([self._ids, np.zeros(spare, dtype=np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(spare, dtype=np.float32)])
        self._index[token_id] = self._size
        self._ids[self._size] = token_id
        self._counts[self._size] = 1
        self._size += 1


def _flat_indices(rows: list[int], ids: Sequence[IntArray], vocab_size: int) -> IntArray:
    """Indices into the flattened ``[S, V]`` logits of every row's token ids."""
    starts = np.repeat(np.array(rows, dtype=np.int64) * vocab_size, [len(row_ids) for row_ids in ids])
    return np.concatenate(ids) + starts


class RepetitionPenalty(LogitsProcessor):
    """Make every token already in the sequence less likely.

    A positive logit is divided by the penalty and a negative one multiplied,
    so that a penalty above 1 lowers both. The prompt counts, as in transformers.
    """

    def __init__(self, penalty: float, token_ids: IntArray) -> None:
        self.penalty = penalty
        self.seen = TokenCounts(token_ids)

    @classmethod
    def for_sequence(
        cls,
        params: SamplingParams,
        ending_ids: frozenset[int],  # noqa: ARG003
        prompt_ids: IntArray,
        output_ids: IntArray,
    ) -> Self | None:
        if params.repetition_penalty == 1.0:
            return None
        return cls(params.repetition_penalty, np.concatenate([prompt_ids, output_ids]))

    def accept(self, token_id: int) -> None:
        self.seen.add(token_id)

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        ids = [processor.seen.ids for processor in processors]
        indices_N = on_device(_flat_indices(rows, ids, logits_SV.shape[1]), logits_SV.device)
        penalties = np.repeat(np.array([p.penalty for p in processors], dtype=np.float32), [len(i) for i in ids])
        penalty_N = on_device(penalties, logits_SV.device)
        flat = logits_SV.view(-1)
        logits_N = flat[indices_N]
        flat[indices_N] = torch.where(logits_N < 0, logits_N * penalty_N, logits_N / penalty_N)


class OutputPenalty(LogitsProcessor):
    """Presence and frequency penalty: lower each token of the output, once and once per occurrence.

    The prompt does not count, as in OpenAI's API.
    """

    def __init__(self, presence: float, frequency: float, output_ids: IntArray) -> None:
        self.presence = presence
        self.frequency = frequency
        self.seen = TokenCounts(output_ids)

    @classmethod
    def for_sequence(
        cls,
        params: SamplingParams,
        ending_ids: frozenset[int],  # noqa: ARG003
        prompt_ids: IntArray,  # noqa: ARG003
        output_ids: IntArray,
    ) -> Self | None:
        if params.presence_penalty == 0.0 and params.frequency_penalty == 0.0:
            return None
        return cls(params.presence_penalty, params.frequency_penalty, output_ids)

    def accept(self, token_id: int) -> None:
        self.seen.add(token_id)

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        ids = [processor.seen.ids for processor in processors]
        amounts = np.concatenate([p.presence + p.frequency * p.seen.counts for p in processors])
        indices_N = on_device(_flat_indices(rows, ids, logits_SV.shape[1]), logits_SV.device)
        logits_SV.view(-1)[indices_N] -= on_device(amounts.astype(np.float32), logits_SV.device)


class MinNewTokens(LogitsProcessor):
    """Forbid the tokens that would end the sequence until it has ``min_new_tokens`` new ones."""

    def __init__(self, num_missing: int, banned_ids: IntArray) -> None:
        self.num_missing = num_missing
        self.banned_ids = banned_ids

    @classmethod
    def for_sequence(
        cls,
        params: SamplingParams,
        ending_ids: frozenset[int],
        prompt_ids: IntArray,  # noqa: ARG003
        output_ids: IntArray,
    ) -> Self | None:
        num_missing = params.min_new_tokens - len(output_ids)
        if num_missing <= 0 or not ending_ids:
            return None
        return cls(num_missing, np.array(sorted(ending_ids), dtype=np.int64))

    def accept(self, token_id: int) -> None:  # noqa: ARG002
        self.num_missing -= 1
        self.is_spent = self.num_missing == 0

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        vocab_size = logits_SV.shape[1]
        ids = [p.banned_ids[p.banned_ids < vocab_size] if p.num_missing > 0 else p.banned_ids[:0] for p in processors]
        indices_N = on_device(_flat_indices(rows, ids, vocab_size), logits_SV.device)
        logits_SV.view(-1)[indices_N] = -torch.inf


PROCESSORS: tuple[type[LogitsProcessor], ...] = (RepetitionPenalty, OutputPenalty, MinNewTokens)
"""In the order in which they are applied, which is transformers'."""


def for_sequence(
    params: SamplingParams, ending_ids: frozenset[int], prompt_ids: IntArray, output_ids: IntArray
) -> tuple[LogitsProcessor, ...]:
    """The processors that a sequence asked for."""
    made = (rule.for_sequence(params, ending_ids, prompt_ids, output_ids) for rule in PROCESSORS)
    return tuple(processor for processor in made if processor is not None)


def apply(logits_SV: Tensor, processors_S: Iterable[tuple[LogitsProcessor, ...]]) -> None:
    """Apply every row's processors in place, rule by rule."""
    by_rule: dict[type[LogitsProcessor], tuple[list[int], list[LogitsProcessor]]] = {}
    for row, processors in enumerate(processors_S):
        for processor in processors:
            rows, members = by_rule.setdefault(type(processor), ([], []))
            rows.append(row)
            members.append(processor)
    for rule in PROCESSORS:
        if rule in by_rule:
            rule.apply(logits_SV, *by_rule[rule])
