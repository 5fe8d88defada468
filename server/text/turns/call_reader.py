"""Finds a model's calls in its text, whatever their format; what looks like one and is none stays text."""

from __future__ import annotations

from collections.abc import Iterable

from server.text.turns.calls import Call, CallFormat, CallScan, Found, Functions, NoCall, Verdict
from server.text.turns.pieces import CallDelta, CallIds, Piece, Reader


class CallReader(Reader):
    """Text with calls in it. A call is returned when it is whole; white space around calls goes."""

    def __init__(
        self, call_format: CallFormat, functions: Functions, ids: CallIds, *, max_calls: int | None = None
    ) -> None:
        """After ``max_calls`` the rest of the output is dropped."""
        self._format = call_format
        self._functions = functions
        self._ids = ids
        self._max_calls = max_calls
        self._may_begin_bare = call_format.starts_bare
        self._follows_call = False
        self._closings: tuple[str, ...] = ()
        """Marks that may still close the last call."""
        self._held = ""
        """Text that is not certain: white space, and the beginning of a mark."""
        self._scan: CallScan | None = None
        self._opening = ""
        """What `_scan` began with, and the white space before it."""
        self._scanned: list[str] = []

    def push(self, text: str) -> list[Piece]:
        if not text or self.is_over:
            return []
        if self._scan is None:
            self._held += text
            return self._drain()
        self._scanned.append(text)
        return [*self._settle(self._scan.feed(text)), *self._drain()]

    def finish(self) -> list[Piece]:
        pieces: list[Piece] = []
        while self._scan is not None:
            pieces += [*self._settle(self._scan.finish()), *self._drain()]
        rest, self._held = self._held, ""
        is_markup = self._follows_call and any(mark.startswith(rest.strip()) for mark in ("", *self._closings))
        return pieces if self.is_over or not rest or is_markup else [*pieces, rest]

    def _drain(self) -> list[Piece]:
        pieces: list[Piece] = []
        while self._scan is None and not self.is_over and (more := self._next()) is not None:
            pieces += more
        return pieces

    def _next(self) -> list[Piece] | None:
        """What the held text makes certain; None once nothing more is."""
        bare = self._held.lstrip()
        if self._follows_call or self._may_begin_bare:
            marks = [*self._closings, *([self._format.bare_opening] if self._may_begin_bare else [])]
            mark = next((mark for mark in marks if bare.startswith(mark)), None)
            if mark in self._closings:
                self._held, self._closings = bare.removeprefix(mark or ""), ()
                self._may_begin_bare = self._may_begin_bare and self._format.starts_bare
                return []
            if mark is not None:
                return self._begin("", self._held[: -len(bare)], bare)
            if any(mark.startswith(bare) for mark in marks):
                return None
        if not bare:
            return None
        self._follows_call = self._may_begin_bare = False
        return self._in_text()

    def _in_text(self) -> list[Piece] | None:
        places = [(self._held.find(opening), opening) for opening in self._format.openings]
        place, opening = min([found for found in places if found[0] >= 0], default=(-1, ""))
        if place >= 0:
            text = self._held[:place].rstrip()
            return [*([text] if text else []), *self._begin(opening, self._held[len(text) : place], self._held[place:])]
        cut = self._num_certain()
        certain, self._held = self._held[:cut], self._held[cut:]
        return [certain] if certain else None

    def _num_certain(self) -> int:
        """Characters of the held text before white space and what may become an opening."""
        openings = self._format.openings
        longest = min(len(self._held), max(map(len, openings)) - 1)
        tails = (self._held[-n:] for n in range(longest, 0, -1))
        tail = next((tail for tail in tails if any(opening.startswith(tail) for opening in openings)), "")
        return len(self._held[: len(self._held) - len(tail)].rstrip())

    def _begin(self, opening: str, space: str, text: str) -> list[Piece]:
        """Scan ``text`` from its opening on."""
        self._scan, self._opening = self._format.scan(opening, self._functions), space + opening
        rest, self._held = text.removeprefix(opening), ""
        self._scanned = [rest]
        return self._settle(self._scan.feed(rest)) if rest else []

    def _settle(self, verdict: Verdict) -> list[Piece]:
        """Leave the scan once it is decided; what does not belong to its calls is read on."""
        if verdict is None:
            return []
        text, self._scanned, self._scan = "".join(self._scanned), [], None
        self._follows_call = isinstance(verdict, Found)
        self._may_begin_bare = self._follows_call and bool(self._format.bare_opening)
        if isinstance(verdict, NoCall):
            self._held = text
            return [self._opening] if self._opening else []
        self._held, self._closings = text[verdict.length :], self._format.closings
        return self._deltas(verdict.calls)

    def _deltas(self, calls: Iterable[Call]) -> list[Piece]:
        deltas: list[Piece] = []
        for call in calls:
            if not self.is_over:
                deltas.append(CallDelta(self.num_calls, call.arguments, self._ids(self.num_calls), call.name))
                self.num_calls += 1
                self.is_over = self.num_calls == self._max_calls
        return deltas
