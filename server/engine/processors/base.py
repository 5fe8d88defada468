"""What a logits processor is. Knows nothing of temperature or drawing.

A sequence holds only the processors it asked for, in the order of `order.PROCESSORS`; most hold none and cost nothing.
Each class changes the logits of all its rows at once, in the few token ids concerned.

Dimension key
    S  rows: sequences that choose a token
    V  vocabulary size
    N  (row, token id) pairs that a rule touches
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from torch import Tensor

from server.engine.batch_inputs import IntArray
from server.protocol import SamplingParams
from server.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Start:
    """What is known of a sequence when its processors are made: at its arrival, or after it went back."""

    params: SamplingParams
    prompt_ids: IntArray
    output_ids: IntArray
    ending_ids: frozenset[int]
    """Tokens that end the sequence."""
    max_tokens: int
    """Most tokens of prompt and output together."""
    vocabulary: Vocabulary | None = None
    """The tokens' bytes; None where no rule on text is asked for."""
    template_spans: Sequence[tuple[int, int]] = ()
    """Ranges of the prompt that penalties do not count."""
    banned_at: dict[int, set[int]] = field(default_factory=dict)
    """Tokens that may not be chosen after so many new tokens, for a banned phrase began with them."""

    @property
    def token_ids(self) -> IntArray:
        return np.concatenate([self.prompt_ids, self.output_ids])


class LogitsProcessor(ABC):
    """One rule and what it remembers of one sequence."""

    is_spent = False
    """Whether it will change nothing any more."""
    ends_sequence = False
    """Whether the rule allows no further token: the sequence ends as by an end token. Asked after `accept`."""

    @classmethod
    @abstractmethod
    def for_sequence(cls, start: Start) -> Self | None:
        """The rule's state for a sequence, or None where the parameters are neutral."""

    @abstractmethod
    def accept(self, token_id: int) -> None:
        """The sequence's output grew by ``token_id``."""

    def fork(self) -> Self:
        """The same state for a copy of the sequence; afterwards neither changes the other."""
        return copy.deepcopy(self)

    @classmethod
    @abstractmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        """Change ``logits_SV[rows]`` in place; ``processors`` belong to ``rows``.

        For beams the rows are log-probabilities, as in transformers.
        """


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


def flat_indices(rows: list[int], ids: Sequence[IntArray], vocab_size: int) -> IntArray:
    """Indices into the flattened ``[S, V]`` logits of every row's token ids."""
    starts = np.repeat(np.array(rows, dtype=np.int64) * vocab_size, [len(row_ids) for row_ids in ids])
    return np.concatenate(ids) + starts
