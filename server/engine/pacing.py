"""How long steps take, learned while they run, and how much of prompts a step may therefore compute.

Running streams get one token a step: a step that also computes much of a prompt holds all of them up. It is stretched
to `STRETCH` times a step without prompts, by as many prompt tokens as that is worth on this machine. The more requests
wait above `FEW_WAITING`, the more they count. Times decide how work is cut, never what comes out.

Tokens of an encoder-decoder's sources count like tokens of prompts. What one of them costs is learned apart, since they
go through other layers.

Knows no clock: who runs the steps tells how long they took. All that is kept are medians of the last few, so that a
step which was interrupted says nothing.
"""

from __future__ import annotations

import math

from server.token_budget import Recent

STRETCH = 2.0
"""A step with prompt tokens takes so many times as long as one without."""

FEW_WAITING = 4
"""Where no more requests wait than this, the streams' pace is kept. Twice as many are worth twice the stretch: what is
held up is one token of each stream, and what waits is all of an answer."""

LEAST_TOKENS = 16
"""Fewer prompt tokens are not worth a step; more are cut to a multiple, which suits matrix products."""

MOST_STEPS_UNSEEN = 64
"""After so many steps in a row with prompts, one without shows the pace again; sooner while little is known."""


class Pace:
    """Seconds of plain steps, those with one token for each of about so many rows and nothing else."""

    def __init__(self) -> None:
        self.seconds = Recent(15)
        self.num_unseen = 0
        """Steps with as many rows since the last plain one."""

    @property
    def is_due(self) -> bool:
        return self.num_unseen >= min(MOST_STEPS_UNSEEN, 4 * self.seconds.num_seen)


class TokenCost:
    """What a token of one kind costs."""

    def __init__(self) -> None:
        self.added_s = Recent(7)
        """Seconds that each token adds to a step of rows that grow."""
        self.alone_s = Recent(7)
        """Seconds a token of steps with nothing else: the first guess."""

    @property
    def seconds(self) -> float | None:
        """None while nothing is known."""
        return next((known.median for known in (self.added_s, self.alone_s) if known.num_seen), None)


class Pacing:
    """What is known of this machine's steps. One for an engine."""

    def __init__(self) -> None:
        self._paces: dict[int, Pace] = {}
        """By number of rows, in half octaves."""
        self._prompts, self._sources = TokenCost(), TokenCost()

    def observe(
        self,
        num_rows: int,
        num_prompt_tokens: int,
        seconds: float,
        *,
        num_source_tokens: int = 0,
        has_drafts: bool = False,
    ) -> None:
        """A step is done: ``num_rows`` rows computed one token and others ``num_prompt_tokens`` together.

        ``num_source_tokens`` is what its parts of sources cost.
        """
        # What there is more of is what the step shows.
        cost, num_tokens = self._prompts, num_prompt_tokens
        if num_source_tokens > num_prompt_tokens:
            cost, num_tokens = self._sources, num_source_tokens
        if num_rows == 0:
            if num_tokens >= LEAST_TOKENS:
                cost.alone_s.add(seconds / num_tokens)
            return
        pace = self._paces.setdefault(_octave(num_rows), Pace())
        if num_tokens == 0 and not has_drafts:
            pace.seconds.add(seconds)
            pace.num_unseen = 0
            return
        pace.num_unseen += 1
        if num_tokens >= LEAST_TOKENS and pace.seconds.num_seen and not has_drafts:
            plain_s = pace.seconds.median
            # Never much less than was seen: a few tokens may cost nothing where many do.
            cost.added_s.add(max(seconds - plain_s, plain_s / 2) / num_tokens)

    def plain_s(self, num_rows: int) -> float | None:
        """Seconds of a step with one token for each of ``num_rows``; None where one has to show it first."""
        pace = self._paces.get(_octave(num_rows))
        return None if pace is None or not pace.seconds.num_seen or pace.is_due else pace.seconds.median

    def num_prompt_tokens(self, num_rows: int, num_waiting: int) -> int:
        """Most prompt tokens of a step in which ``num_rows`` rows get their next token and ``num_waiting`` want to.

        0 where the pace has to be seen first: never twice in a row for the same number of rows.
        """
        plain_s = self.plain_s(num_rows)
        if plain_s is None:
            return 0
        stretch = STRETCH * max(1.0, num_waiting / FEW_WAITING)
        num_tokens = int((stretch - 1.0) * plain_s / self._seconds_of_token(plain_s))
        return max(LEAST_TOKENS, num_tokens // LEAST_TOKENS * LEAST_TOKENS)

    def _seconds_of_token(self, plain_s: float) -> float:
        return self._prompts.seconds or self._sources.seconds or plain_s / LEAST_TOKENS

    @property
    def source_weight(self) -> float:
        """How many tokens of a prompt take as long as one of a source."""
        if self._prompts.seconds and self._sources.seconds:
            return self._sources.seconds / self._prompts.seconds
        return 1.0


def _octave(num_rows: int) -> int:
    return round(2 * math.log2(num_rows))
