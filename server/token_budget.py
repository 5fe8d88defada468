"""How many tokens of prompts or texts one step takes, learned from how long steps take on this machine.

A step costs a fixed part, in which weights are read and Python runs, and a part for each token. A large step spreads
the fixed part over more tokens; a small one lets a short request wait less. Times decide how work is cut into steps,
never what comes out.

Knows no clock: the engine that runs the steps reports their times.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

SMALL_SHARE = 1.0 / 32
"""Of a step's time, the fixed part that a step should have at most."""

LARGEST_SHARE = 0.25
"""The fixed part may have this much of a step where a smaller share would take longer than the time limit."""

MULTIPLE = 16
"""Budgets are multiples of this, which suits matrix products."""

FULL_PART = 0.5
"""Steps of at least this part of the budget show what a token costs."""

SMALL_PART = 0.125
"""Steps of at most this part of the budget show the fixed part."""

FAR_APART = 4.0
"""Full steps show the fixed part only beside steps with this many times fewer tokens."""

LEAST_TOKEN_S = 1e-9
"""A coarse clock may see no time at all."""


class Recent:
    """The median of the last few values, so that one interrupted step changes nothing."""

    def __init__(self, num_values: int) -> None:
        self._values: deque[float] = deque(maxlen=num_values)
        self.num_seen = 0

    def add(self, value: float) -> None:
        self._values.append(value)
        self.num_seen += 1

    @property
    def median(self) -> float:
        return median(self._values)


class _Steps:
    """The typical one of the last few steps of about the same size."""

    def __init__(self, num_values: int) -> None:
        self._tokens, self._seconds = Recent(num_values), Recent(num_values)

    def add(self, num_tokens: int, seconds: float) -> None:
        self._tokens.add(num_tokens)
        self._seconds.add(seconds)

    @property
    def typical(self) -> tuple[float, float] | None:
        """Tokens and seconds; None before the first step."""
        return (self._tokens.median, self._seconds.median) if self._tokens.num_seen else None


class TokenBudget:
    """The most tokens of a step, for one engine.

    ``num_tokens`` is the least with which the fixed part is a small share of a step, but at least ``first``, within
    ``step_s`` seconds a step. Where even a quarter of a step would be fixed within that time, a step may take longer.
    Until a full step has been seen it is ``first``, and while the fixed part is unknown at most ``usual``.
    """

    def __init__(self, *, first: int, usual: int, most: int, step_s: float) -> None:
        self._first, self._usual, self._most = (min(value, most) for value in (first, usual, most))
        self._step_s = step_s
        self._small, self._full = _Steps(15), _Steps(7)
        self.num_tokens = self._first

    def observe(self, num_tokens: int, seconds: float, *, is_growth: bool = False) -> None:
        """A step computed ``num_tokens`` tokens in this time.

        ``is_growth``: each was the next token of a sequence, which costs more than a token of a prompt. Such a step can
        show the fixed part only.
        """
        if num_tokens >= FULL_PART * self.num_tokens and not is_growth:
            self._full.add(num_tokens, seconds)
        elif num_tokens <= SMALL_PART * self.num_tokens:
            self._small.add(num_tokens, seconds)
        else:
            return
        self.num_tokens = self.num_tokens_within(self._step_s)

    def num_tokens_within(self, step_s: float) -> int:
        """What ``num_tokens`` would be with another time limit for a step."""
        return self.num_tokens if self._full.typical is None else self._choose(*self._full.typical, step_s)

    def _choose(self, full_tokens: float, full_s: float, step_s: float) -> int:
        wanted, least = float(self._usual), 0.0
        fixed_s, token_s = 0.0, max(full_s / full_tokens, LEAST_TOKEN_S)
        small_tokens, small_s = self._small.typical or (math.inf, 0.0)
        if full_tokens >= FAR_APART * small_tokens:
            # At least half of what the whole step says: a small step that was slow says little.
            slope_s = max((full_s - small_s) / (full_tokens - small_tokens), token_s / 2)
            # Tokens of the full steps may cost more, as with long contexts: then nothing is known of the fixed part.
            if (rest_s := small_s - small_tokens * slope_s) > 0:
                fixed_s, token_s = rest_s, slope_s
                wanted, least = (fixed_s * (1 / share - 1) / token_s for share in (SMALL_SHARE, LARGEST_SHARE))
                wanted = max(wanted, self._first)
        in_time = (step_s - fixed_s) / token_s
        num_tokens = max(min(wanted, in_time), least)
        return min(self._most, max(MULTIPLE, int(num_tokens) // MULTIPLE * MULTIPLE))
