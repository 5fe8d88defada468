"""One line at the foot of a terminal, written anew as things go on; whatever else is written stands above it."""

from __future__ import annotations

import shutil
import threading
from typing import TextIO

CLEAR = "\r\x1b[K"


class StatusLine:
    """Shares a terminal between a line that changes and lines that stay: a sink like the stream that it is made of."""

    def __init__(self, sink: TextIO) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._shown = ""

    def show(self, text: str) -> None:
        """Put ``text`` in the place of what is shown, cut to the terminal's width; the empty text takes it away."""
        text = text[: shutil.get_terminal_size().columns - 1]
        with self._lock:
            if text != self._shown:
                self._shown = text
                self._sink.write(CLEAR + text)
                self._sink.flush()

    def write(self, text: str) -> int:
        """Lines that stay."""
        with self._lock:
            if self._shown:
                text = CLEAR + text + (self._shown if text.endswith("\n") else "")
            return self._sink.write(text)

    def flush(self) -> None:
        self._sink.flush()

    def isatty(self) -> bool:
        return self._sink.isatty()
