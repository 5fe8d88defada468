"""Guesses at what comes next, taken from what the text has said before, and what they are worth. Knows no logits.

A row may compute guessed tokens behind its last one. Each is compared with the token that is chosen at its place as
always; those before the first difference are the output, the others never were. So a guess decides how many tokens
a step gives, never which.

Whether it pays is learned from what guesses came true, drafted or not, and from what steps with drafts cost: on a
busy batch they cost too much, in free text they are wrong, and then nothing is drafted.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np

from server.engine.batch import Share
from server.engine.batch_inputs import IntArray
from server.engine.pacing import Pacing
from server.engine.sequence import Sequence
from server.token_budget import Recent

MAX_ROWS = 8
"""With more rows nothing is even looked up."""

DRAFT_LENGTHS = (8, 4, 2, 1)

WINDOW = 4096
"""So many last tokens are looked through."""

FIRST_COST = 0.1
"""Of a drafted token, as a part of a plain step, until it is measured."""

LEAST_GAIN = 1.03
LEAST_CHANCE = 0.05

MOST_DECLINED = 128
"""When drafts have cost too much for so many steps, one shows again what they cost."""

NONE: IntArray = np.zeros(0, dtype=np.int64)


def find(token_ids: IntArray, max_tokens: int) -> IntArray:
    """What followed the last earlier place that the three last tokens, or else two, stand at.

    Where that runs into the end, it repeats.

    >>> find(np.array([1, 2, 3, 4, 5, 1, 2, 3]), 3).tolist()
    [4, 5, 1]
    >>> find(np.array([9, 7, 8, 7, 8]), 5).tolist()
    [7, 8, 7, 8, 7]
    """
    if len(token_ids) < 3 or max_tokens <= 0:
        return NONE
    before = np.flatnonzero(token_ids[1:-1] == token_ids[-1])
    before = before[token_ids[before] == token_ids[-2]]
    if len(before) == 0:
        return NONE
    longer = before[(before > 0) & (token_ids[before - 1] == token_ids[-3])]
    place = int((longer if len(longer) else before)[-1]) + 2
    followed: IntArray = np.resize(token_ids[place:], max_tokens)
    return followed


class Guesses:
    """How often the guesses for one sequence came true of late."""

    __slots__ = ("chance", "is_off", "place", "token_id")

    def __init__(self) -> None:
        self.chance = 0.5
        self.place = -1
        """Of a guess that no step has looked at: number of tokens before it."""
        self.token_id = -1
        self.is_off = False

    def note(self, is_right: bool) -> None:
        self.chance += 0.1 * (is_right - self.chance)


class Drafter:
    """Chooses what is drafted in a step. One for an engine."""

    def __init__(self, pacing: Pacing) -> None:
        self._pacing = pacing
        self._costs: dict[int, Recent] = {}
        """Of each drafted token as a part of a plain step, by the bits of how many there are."""
        self._num_declined = 0

    def drafts(self, shares: Rows[Share], max_tokens: int) -> list[IntArray]:
        """Guessed tokens for each of the rows, which lack one token each; at most ``max_tokens`` together."""
        if len(shares) > MAX_ROWS or not all(share.group.is_simple for share in shares):
            return []
        found = [self._guess(share.sequence) for share in shares]
        # A plain step is wanted now and then: what drafts cost is measured by it.
        if not any(map(len, found)) or self._pacing.plain_s(len(shares)) is None:
            return []
        length = self._best_length(shares, found)
        drafts = []
        for draft in found:
            drafts.append(draft[: min(length, max_tokens)])
            max_tokens -= len(drafts[-1])
        return drafts

    def learn(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Of a draft so many tokens came true."""
        guesses = _guesses_of(sequence)
        guesses.place = -1
        for i in range(min(num_accepted + 1, num_drafted)):
            guesses.note(i < num_accepted)

    def turn_off(self, sequence: Sequence) -> None:
        _guesses_of(sequence).is_off = True

    def observe(self, num_rows: int, num_drafted: int, seconds: float) -> None:
        """A step with drafts is done."""
        plain_s = self._pacing.plain_s(num_rows)
        if plain_s is not None:
            cost = self._costs.setdefault(num_drafted.bit_length(), Recent(15))
            cost.add(max(0.0, seconds / plain_s - 1.0) / num_drafted)

    def _guess(self, sequence: Sequence) -> IntArray:
        if sequence.watch is not None or sequence.grammar is not None:
            return NONE
        guesses = _guesses_of(sequence)
        if guesses.is_off:
            return NONE
        size = sequence.num_tokens
        if guesses.place == size - 1:
            guesses.note(bool(sequence.token_ids[size - 1] == guesses.token_id))
        guesses.place = -1
        # The last token that may come is chosen after all of the draft.
        most = min(DRAFT_LENGTHS[0], sequence.stopping.max_tokens - size - 1)
        draft = find(sequence.token_ids[max(0, size - WINDOW) : size], most)
        if len(draft):
            guesses.place, guesses.token_id = size, int(draft[0])
        return draft if guesses.chance >= LEAST_CHANCE else NONE

    def _best_length(self, shares: Rows[Share], found: list[IntArray]) -> int:
        """The most tokens a second; 0 where drafts would not raise them."""
        best, best_gain = 0, LEAST_GAIN
        for length in DRAFT_LENGTHS:
            lengths = [min(length, len(draft)) for draft in found]
            chances = [_guesses_of(share.sequence).chance for share in shares]
            num_expected = sum(_num_expected(*pair) for pair in zip(chances, lengths, strict=True))
            gain = num_expected / len(shares) / (1.0 + self._cost(sum(lengths)))
            if gain > best_gain:
                best, best_gain = length, gain
        self._num_declined = 0 if best else self._num_declined + 1
        if self._num_declined == MOST_DECLINED:
            self._costs.clear()
        return best

    def _cost(self, num_drafted: int) -> float:
        if not self._costs or not num_drafted:
            return FIRST_COST * num_drafted
        nearest = min(self._costs, key=lambda bits: abs(bits - num_drafted.bit_length()))
        return self._costs[nearest].median * num_drafted


def _guesses_of(sequence: Sequence) -> Guesses:
    if sequence.guesses is None:
        sequence.guesses = Guesses()
    return sequence.guesses


def _num_expected(chance: float, num_drafted: int) -> float:
    """Tokens that a step gives the row: each needs those before it."""
    return sum(chance**i for i in range(num_drafted + 1))
