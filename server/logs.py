"""Log lines, JSON or text, written to stderr by a thread of their own so that no request waits for the sink."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

MAX_FIELD_CHARACTERS = 1024
MAX_TRACEBACK_CHARACTERS = 16_384
MAX_QUEUED_LINES = 10_000
PAUSE_S = 0.02
"""After a write, for more lines to come: waking the thread for each would stop the event loop as often."""


class Sink(Protocol):
    """Where lines go: a stream, or what stands before one."""

    def write(self, text: str, /) -> int: ...

    def flush(self) -> None: ...

    def isatty(self) -> bool: ...


def printable(text: str, limit: int = MAX_FIELD_CHARACTERS) -> str:
    r"""``text`` cut to ``limit`` and without characters that could start a line, move a cursor or reverse the writing.

    >>> printable("a\n\x1b[31mb\u202e")
    'a\\n\\x1b[31mb\\u202e'
    """
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return {name: printable(value) if isinstance(value, str) else value for name, value in fields.items()}


class JsonFormatter(logging.Formatter):
    """One ASCII JSON object a line; what is passed as ``extra={"fields": {...}}`` stands beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage()),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)[-MAX_TRACEBACK_CHARACTERS:]
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """One line for a person: time, level, message, fields; a traceback stands below it."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        fields = "".join(f"  {name}={value}" for name, value in _fields(record).items())
        line = f"{time} {record.levelname.lower():7} {printable(record.getMessage())}{fields}"
        if not record.exc_info:
            return line
        traceback = self.formatException(record.exc_info)[-MAX_TRACEBACK_CHARACTERS:]
        return "\n    ".join([line, *(printable(row) for row in traceback.splitlines())])


class BackgroundHandler(logging.Handler):
    """Formats in the caller and writes in a thread; where the sink does not keep up, lines are dropped and counted.

    A line is written at once, and what follows soon after it is written together.
    """

    def __init__(self, sink: Sink, on_drop: Callable[[], None]) -> None:
        super().__init__()
        self._sink = sink
        self._on_drop = on_drop
        self._lines: deque[str] = deque()
        self._has_lines = threading.Event()
        self._is_written = threading.Event()
        self._is_written.set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._lines) >= MAX_QUEUED_LINES:
            self._on_drop()
            return
        self._is_written.clear()
        self._lines.append(self.format(record) + "\n")
        if not self._has_lines.is_set():
            self._has_lines.set()

    def wait_written(self, limit_s: float) -> None:
        """Return when every line so far is written, or after ``limit_s`` seconds."""
        self._is_written.wait(limit_s)

    def close(self) -> None:
        """Write what is left, for at most a second: a sink that is stuck must not hold the process."""
        self._closing.set()
        self._has_lines.set()
        self._thread.join(1.0)
        super().close()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._has_lines.wait()
            self._has_lines.clear()
            self._write()
            self._closing.wait(PAUSE_S)
        self._write()

    def _write(self) -> None:
        while self._lines:
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            try:
                self._sink.write("".join(lines))
                self._sink.flush()
            except (OSError, ValueError):
                for _ in lines:
                    self._on_drop()
        self._is_written.set()


def set_up(
    form: Literal["auto", "text", "json"], level: str, *, on_drop: Callable[[], None], sink: Sink | None = None
) -> BackgroundHandler:
    """Send all loggers' lines to ``sink``, stderr by default. Close the handler last of all."""
    sink = sink or sys.stderr
    is_text = form == "text" or (form == "auto" and sink.isatty())
    handler = BackgroundHandler(sink, on_drop)
    handler.setFormatter(TextFormatter() if is_text else JsonFormatter())
    root = logging.getLogger()
    for other in list(root.handlers):
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # Their lines are of no use to an operator: requests have lines of their own, and so have start and stop.
    for name in ("uvicorn.error", "uvicorn.access", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return handler
