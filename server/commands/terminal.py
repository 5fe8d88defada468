"""What is written for people: colours where they are wanted, tables, and model output that cannot move the cursor."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TextIO

CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Style:
    """Paints texts, or leaves them as they are."""

    def __init__(self, is_on: bool) -> None:
        self.is_on = is_on

    @classmethod
    def of(cls, stream: TextIO, environment: Mapping[str, str] = os.environ) -> Style:
        """On where the stream is a terminal and nobody has said NO_COLOR."""
        return cls(stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb")

    def paint(self, text: str, colour: str) -> str:
        """
        >>> Style(True).paint("ready", "green"), Style(False).paint("ready", "green")
        ('\\x1b[32mready\\x1b[0m', 'ready')
        """
        return f"\x1b[{CODES[colour]}m{text}\x1b[0m" if self.is_on else text


def safe(text: str) -> str:
    r"""``text`` without characters that would move the cursor, change colours or ring; lines and tabs stay.

    >>> safe("a\x1b[2Jb\n\u4f60\u597d")
    'a[2Jb\n\u4f60\u597d'
    """
    return _CONTROLS.sub("", text)


def columns(text: str) -> int:
    """Places that ``text`` takes on a terminal: a Chinese character or an emoji takes two.

    >>> columns("ab"), columns("\u4f60\u597d")
    (2, 4)
    """
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Lines with the cells under one another; the columns whose numbers are in ``right`` end together.

    >>> table([["name", "size"], ["chat", "9"]], right=[1])
    ['name  size', 'chat     9']
    """
    widths = [max(columns(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - columns(cell))
            cells.append(space + cell if number in right else cell + space)
        lines.append("  ".join(cells).rstrip())
    return lines


def size(num_bytes: float) -> str:
    """
    >>> size(900), size(2097152), size(269_000_000), size(3 * 1024**3)
    ('0.9 KiB', '2.0 MiB', '257 MiB', '3.0 GiB')
    """
    if num_bytes >= 1024**3:
        return f"{num_bytes / 1024**3:.1f} GiB"
    if num_bytes >= 10 * 1024**2:
        return f"{num_bytes / 1024**2:.0f} MiB"
    return f"{num_bytes / 1024**2:.1f} MiB" if num_bytes >= 1024**2 else f"{num_bytes / 1024:.1f} KiB"


def count(number: float) -> str:
    """
    >>> count(950), count(135_000_000), count(7_300_000_000)
    ('950', '135 M', '7.3 B')
    """
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            value = number / limit
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{number:.0f}"
