"""How far a long command is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time

from server.status_line import StatusLine

BAR_WIDTH = 30
LOG_EVERY_S = 10.0
DRAW_EVERY_S = 0.1


class Progress:
    """Counts what is done, on standard error. ``total`` is None where nobody knows it."""

    def __init__(self, what: str, total: int | None) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._started_s = time.monotonic()
        self._status = StatusLine(sys.stderr) if sys.stderr.isatty() else None
        self._told_s = self._started_s

    def advance(self) -> None:
        self._done += 1
        now_s = time.monotonic()
        if now_s - self._told_s >= (LOG_EVERY_S if self._status is None else DRAW_EVERY_S):
            self._told_s = now_s
            self._tell()

    def finish(self) -> None:
        """Take the bar away and leave a line that says how long it took."""
        if self._status is not None:
            self._status.show("")
        elapsed_s = time.monotonic() - self._started_s
        sys.stderr.write(f"{self._done} {self._what} in {elapsed_s:.1f} s\n")

    def _tell(self) -> None:
        rate = self._done / max(time.monotonic() - self._started_s, 1e-9)
        facts = f"{self._done}{'' if self._total is None else f' of {self._total}'} {self._what}, {rate:.1f}/s"
        if self._total is not None:
            facts += f", {_duration((self._total - self._done) / rate)} left"
        if self._status is None:
            sys.stderr.write(facts + "\n")
            sys.stderr.flush()
        else:
            self._status.show(_bar(self._done, self._total) + facts)


def _bar(done: int, total: int | None) -> str:
    """
    >>> _bar(15, 30), _bar(3, None)
    ('[###############...............] ', '')
    """
    if not total:
        return ""
    filled = min(BAR_WIDTH, BAR_WIDTH * done // total)
    return f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] "


def _duration(seconds: float) -> str:
    """
    >>> _duration(9.6), _duration(75), _duration(3700)
    ('10 s', '1:15 min', '1:01 h')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}:{whole % 60:02} min" if whole < 3600 else f"{whole // 3600}:{whole // 60 % 60:02} h"
