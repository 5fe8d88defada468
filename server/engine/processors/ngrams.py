"""Rules against saying again what was said: n-grams that may not return, and DRY's penalty on going on with a repeat.

All three look at how far the sequence's end agrees with each earlier place, and at the token that came next there.
That is kept up to date by one comparison over the tokens at each new one, whatever the text repeats.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from server.engine.batch_inputs import IntArray
from server.engine.processors.base import HIGHEST_LOGIT, FloatArray, LogitsProcessor, Start, add, forbid

Number = TypeVar("Number", bound=np.integer)


class Repeats:
    """For each earlier place of a sequence, how many tokens before it are also the sequence's last ones."""

    def __init__(self, token_ids: IntArray, *, num_places: int | None = None, breakers: Collection[int] = ()) -> None:
        self.num_places = num_places
        """Only so many first places are looked at; None looks at all."""
        self._breakers = breakers
        self._size = len(token_ids)
        self._ids = _with_room(token_ids)
        self._lengths = _with_room(_agreements(token_ids.tolist(), breakers))

    def accept(self, token_id: int) -> None:
        num_before = self._size if self.num_places is None else min(self._size, self.num_places - 1)
        if self._size == len(self._ids):
            self._ids, self._lengths = _with_room(self._ids), _with_room(self._lengths)
        if token_id in self._breakers:
            self._lengths[: num_before + 1] = 0
        else:
            agrees = self._ids[:num_before] == token_id
            self._lengths[1 : num_before + 1] = (self._lengths[:num_before] + 1) * agrees
        self._ids[self._size] = token_id
        self._size += 1

    def continuations(self, num_tokens: int, num_last: int = 0) -> tuple[IntArray, npt.NDArray[np.int32]]:
        """The tokens that came after each agreement of at least ``num_tokens``, and its length.

        Agreements within the last ``num_last`` tokens only, unless that is 0.
        """
        size = self._size if self.num_places is None else min(self._size, self.num_places)
        first = max(0, self._size - num_last) if num_last else 0
        lengths = self._lengths[first:size]
        if first:
            lengths = np.minimum(lengths, np.arange(len(lengths), dtype=np.int32))
        places = np.flatnonzero(lengths >= num_tokens)
        return self._ids[first:size][places], lengths[places]

    def fork(self) -> Self:
        twin = copy.copy(self)
        twin._ids, twin._lengths = self._ids.copy(), self._lengths.copy()
        return twin


class NoRepeatNGram(LogitsProcessor):
    """No n tokens in a row that were there before, in prompt or output."""

    def __init__(self, size: int, repeats: Repeats) -> None:
        self.size = size
        self.repeats = repeats

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        size = start.params.no_repeat_ngram_size
        return cls(size, Repeats(start.token_ids)) if size > 0 else None

    def accept(self, token_id: int) -> None:
        self.repeats.accept(token_id)

    def fork(self) -> Self:
        return type(self)(self.size, self.repeats.fork())

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        forbid(logits_SV, rows, [p.repeats.continuations(p.size - 1)[0] for p in processors])


class EncoderNoRepeatNGram(NoRepeatNGram):
    """No n tokens in a row that are in the prompt or source."""

    BETWEEN = np.array([-1])
    """Parts a source from what the decoder writes: no repeat reaches across."""

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        size = start.params.encoder_no_repeat_ngram_size
        if size == 0:
            return None
        token_ids = start.token_ids
        if start.context.source_ids:
            token_ids = np.concatenate([start.input_ids, cls.BETWEEN, token_ids])
        return cls(size, Repeats(token_ids, num_places=len(start.input_ids)))


class Dry(LogitsProcessor):
    """Don't repeat yourself: lower each token that would go on with a repeat, the more the longer that is already.

    A repeat of ``allowed_length`` tokens costs the multiplier, each token more the base as often again. Of several
    repeats that a token goes on with the longest counts. A repeat reaches neither across a breaker nor into a
    template, and going on with a breaker costs nothing.
    """

    TEMPLATE = -1
    """Stands for a token of a template: breaks every repeat."""

    def __init__(self, start: Start) -> None:
        params = start.params
        self.multiplier = params.dry_multiplier
        self.base = params.dry_base
        self.allowed_length = max(1, params.dry_allowed_length)
        self.range = params.dry_range
        self.breakers = frozenset([*params.dry_breaker_ids, self.TEMPLATE])
        token_ids = start.token_ids
        for first, stop in start.context.template_spans:
            token_ids[first:stop] = self.TEMPLATE
        self.repeats = Repeats(token_ids, breakers=self.breakers)

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        return None if start.params.dry_multiplier == 0.0 else cls(start)

    def accept(self, token_id: int) -> None:
        self.repeats.accept(token_id)

    def fork(self) -> Self:
        twin = copy.copy(self)
        twin.repeats = self.repeats.fork()
        return twin

    def penalties(self) -> dict[int, float]:
        """What each token costs."""
        ids, lengths = self.repeats.continuations(self.allowed_length, self.range)
        rising = lengths.argsort()
        longest = dict(zip(ids[rising].tolist(), lengths[rising].tolist(), strict=True))  # the last of equal keys stays
        return {
            token_id: self._penalty(length) for token_id, length in longest.items() if token_id not in self.breakers
        }

    def _penalty(self, length: int) -> float:
        try:
            return min(self.multiplier * self.base ** (length - self.allowed_length), HIGHEST_LOGIT)
        except OverflowError:
            return math.copysign(HIGHEST_LOGIT, self.multiplier)

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        penalties = [p.penalties() for p in processors]
        ids = [np.array(list(row), dtype=np.int64) for row in penalties]
        amounts: list[FloatArray] = [-np.array(list(row.values()), dtype=np.float64) for row in penalties]
        add(logits_SV, rows, ids, amounts)


def _agreements(token_ids: list[int], breakers: Collection[int]) -> npt.NDArray[np.int32]:
    """At each place, how many tokens before it equal the last ones, up to a breaker: the Z function of the reverse."""
    size = len(token_ids)
    limit = next((i for i, token_id in enumerate(reversed(token_ids)) if token_id in breakers), size)
    backward = token_ids[::-1]
    lengths = [0] * (size + 1)
    left = right = 0
    for i in range(1, size):
        length = min(right - i, lengths[i - left]) if i < right else 0
        while i + length < size and backward[length] == backward[i + length]:
            length += 1
        lengths[i] = length
        if i + length > right:
            left, right = i, i + length
    # Place p has the tokens before it; the reverse of them begins at size - p.
    at_places = np.array(lengths[:0:-1], dtype=np.int32)
    return np.minimum(at_places, limit)


def _with_room(array: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """A copy with room to grow, zero there."""
    return np.concatenate([array, np.zeros(max(64, len(array) // 2), dtype=array.dtype)])
