"""What a person types, or a file brings: a message of one line or of several."""

from __future__ import annotations

import contextlib
import io
import sys

from server.commands.terminal import Style

FENCE = '"""'


class Reader:
    """Messages from standard input. On a terminal with a prompt, line editing and a history.

    A line that ends in a backslash goes on in the next; from a line that begins with three quotes to one that ends
    with them is one message.
    """

    def __init__(self, style: Style) -> None:
        for stream in (sys.stdin, sys.stdout):
            if isinstance(stream, io.TextIOWrapper):
                # A broken character must not end the conversation.
                stream.reconfigure(encoding="utf-8", errors="replace")
        self.is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._style = style
        if self.is_terminal:
            with contextlib.suppress(ImportError):
                # Imported, it edits the lines of input().
                import readline  # noqa: F401

    def message(self) -> str | None:
        """The next one; None at the end of the input."""
        line = self._line("> ")
        if line is None:
            return None
        if line.lstrip().startswith(FENCE):
            return self._fenced(line.lstrip()[len(FENCE) :])
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self._line(". ") or "")
        return "\n".join(lines)

    def _fenced(self, first: str) -> str:
        lines = [first]
        while not lines[-1].rstrip().endswith(FENCE):
            line = self._line(". ")
            if line is None:
                return "\n".join(lines).strip("\n")
            lines.append(line)
        return "\n".join(lines).rstrip()[: -len(FENCE)].strip("\n")

    def _line(self, prompt: str) -> str | None:
        if not self.is_terminal:
            line = sys.stdin.readline()
            return line.rstrip("\r\n") if line else None
        try:
            return input(self._prompt(prompt))
        except EOFError:
            return None

    def _prompt(self, prompt: str) -> str:
        """With its colours marked as taking no place, or the line editor would count them."""
        if not self._style.is_on:
            return prompt
        start, _, end = self._style.paint("|", "cyan").partition("|")
        return f"\x01{start}\x02{prompt}\x01{end}\x02"
