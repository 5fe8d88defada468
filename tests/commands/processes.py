"""The real command as a process: plain, or on a pseudo-terminal as a person has it."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.__main__ import main

COMMAND = (sys.executable, "-m", "server")
TIMEOUT_S = 200.0
PATIENCE_S = 2.0
"""After it a person presses a key again."""
TINY = {"SLUICE_THREADS": "1", "SLUICE_KV_CACHE_GIB": "0.02", "SLUICE_DTYPE": "float32"}
"""For servers that a command starts over tiny models."""


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "SLUICE_MODEL")}
    return {**kept, **TINY, "TERM": "xterm", **more}


def run(*words: str | Path, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """To its end, with pipes."""
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env=environment(**more),
    )


def called(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """The command in this process, which has torch already."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([*map(str, words)])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@dataclass
class Terminal:
    """A person's end of a pseudo-terminal."""

    fd: int
    process: subprocess.Popen[bytes]
    shown: str = ""
    place: int = 0
    """Behind the last prompt that was answered."""
    _bytes: bytes = field(default=b"", repr=False)

    def answer(self, text: str) -> int:
        """Type at the prompt that comes next: a key that is pressed before it may be taken for something else."""
        self.place = self.wait_for("> ", after=self.place)
        self.type(text)
        return self.place

    def press_until(self, key: str, text: str, *, after: int) -> int:
        """Press a key, and again while nothing comes of it, until the text is shown; the place behind it.

        Readline notices a Ctrl-C that comes just before it waits for a key only at the next one.
        """
        deadline_s = time.monotonic() + TIMEOUT_S
        self.type(key)
        while text not in self.shown[after:] and time.monotonic() < deadline_s:
            if not self._has_more(PATIENCE_S):
                self.type(key)
            elif not self._read():
                break
        return self.wait_for(text, after=after)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait_for(self, text: str, *, after: int = 0) -> int:
        """Read until the text is shown beyond a place; the place behind it."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while (place := self.shown.find(text, after)) < 0:
            if not self._read() or time.monotonic() > deadline_s:
                raise AssertionError(f"{text!r} was never shown beyond {after}:\n{self.shown[after:]}")
        return place + len(text)

    def wait(self) -> int:
        """Its exit code, once all is read."""
        while self._read():
            pass
        return self.process.wait(TIMEOUT_S)

    def _read(self) -> bool:
        try:
            data = os.read(self.fd, 65536) if self._has_more(TIMEOUT_S) else b""
        except OSError:
            # The other side is closed.
            data = b""
        self._bytes += data
        self.shown = self._bytes.decode(errors="replace")
        return bool(data)

    def _has_more(self, timeout_s: float) -> bool:
        """Also where the other side is closed."""
        return bool(select.select([self.fd], [], [], timeout_s)[0])


@contextlib.contextmanager
def on_terminal(*words: str | Path, env: Mapping[str, str] | None = None) -> Iterator[Terminal]:
    """In a session of its own, so that Ctrl-C comes as it does for a person."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ADOPT, *COMMAND, *map(str, words)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=environment(**(env or {})),
    )
    os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(ours)


ADOPT = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Makes the pseudo-terminal the session's own."""
