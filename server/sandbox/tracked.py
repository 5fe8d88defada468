"""Strings that know where each character comes from: the template, a place in what the client sent, or neither.

What a template writes is known by where it comes from, not by how it looks, so no text of a client can pass for it.
An operation that is not written here gives an ordinary string, whose characters come from nowhere known; no
operation makes a character the template's that was not.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from string import Formatter
from typing import Any, SupportsIndex

TEMPLATE = -1
"""The origin of a character that stands in the template."""
OTHER = -2
"""The origin of a character that something computed. From 0 on, an origin is a place in the client's texts."""

_DIRECTIVE = re.compile(r"[^%]+|%%|%s|(%)", re.DOTALL)


class Tracked(str):
    """A string and, for each of its characters, an origin."""

    __slots__ = ("_origins",)
    # With an underscore, and so out of every template's reach.
    _origins: array[int]

    def __new__(cls, text: str, origins: array[int] | None = None) -> Tracked:
        self = str.__new__(cls, text)
        self._origins = _same(OTHER, len(text)) if origins is None else origins
        return self

    def __str__(self) -> str:
        return self

    def __add__(self, other: Any) -> str:
        # Markup has its own idea of a sum.
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return Tracked(str.__add__(self, other), self._origins + origins_of(other))

    def __radd__(self, other: Any) -> str:
        if not isinstance(other, str):
            return NotImplemented
        return Tracked(str.__add__(other, self), origins_of(other) + self._origins)

    def __mul__(self, count: SupportsIndex) -> str:
        return Tracked(str.__mul__(self, count), self._origins * max(count.__index__(), 0))

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        """Followed through ``%s`` and ``%%``."""
        result = str.__mod__(self, values)
        remaining = iter(values if isinstance(values, tuple) else (values,))
        pieces = []
        for match in _DIRECTIVE.finditer(self):
            if match[1]:
                return result
            start = match.start() + (match[0] == "%%")
            pieces.append(str(next(remaining)) if match[0] == "%s" else self[start : match.end()])
        return concat(pieces)

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if isinstance(key, slice):
            return Tracked(str.__getitem__(self, key), self._origins[key])
        return Tracked(str.__getitem__(self, key), array("i", (self._origins[key],)))

    def __iter__(self) -> Iterator[str]:
        return (Tracked(character, array("i", (origin,))) for character, origin in self._characters())

    def _characters(self) -> Iterator[tuple[str, int]]:
        return zip(str.__iter__(self), self._origins, strict=True)

    def join(self, pieces: Iterable[str], /) -> str:
        parts: list[str] = []
        for piece in pieces:
            parts += (self, piece) if parts else (piece,)
        return concat(parts)

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            return str.replace(self, old, new, count)
        separator = new if isinstance(new, Tracked) else Tracked(new)
        return separator.join(self.split(old, count))

    def strip(self, characters: str | None = None, /) -> str:
        return self.lstrip(characters).rstrip(characters)

    def lstrip(self, characters: str | None = None, /) -> str:
        return self[len(self) - len(str.lstrip(self, characters)) :]

    def rstrip(self, characters: str | None = None, /) -> str:
        return self[: len(str.rstrip(self, characters))]

    def removeprefix(self, prefix: str, /) -> str:
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> str:
        return self[: len(self) - len(suffix)] if suffix and self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._slices(str.split(self, sep, maxsplit), gap=len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._slices(str.rsplit(self, sep, maxsplit), gap=len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[str]:
        lengths = map(len, str.splitlines(self, True))
        return [self._slice(line, length) for line, length in _placed(str.splitlines(self, keepends), lengths)]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        return self._three(str.partition(self, sep))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        return self._three(str.rpartition(self, sep))

    def upper(self) -> str:
        return self._by_character(str.upper(self))

    def lower(self) -> str:
        return self._by_character(str.lower(self))

    def capitalize(self) -> str:
        return self._by_character(str.capitalize(self))

    def title(self) -> str:
        return self._by_character(str.title(self))

    def _by_character(self, changed: str) -> str:
        """``changed`` has one character for each of ours; one that has not, as of an eszett, is nobody's."""
        if len(changed) == len(self):
            return Tracked(changed, self._origins)
        is_template = set(self._origins) == {TEMPLATE}
        return Tracked(changed, _same(TEMPLATE if is_template else OTHER, len(changed)))

    def _three(self, parts: tuple[str, str, str]) -> tuple[str, str, str]:
        before, separator, after = self._slices(parts, gap=0)
        return before, separator, after

    def _slices(self, pieces: Iterable[str], gap: int) -> list[str]:
        """Pieces that stand in this order, each the first of its kind after ``gap`` characters behind the last."""
        found: list[str] = []
        start = 0
        for piece in pieces:
            start = self.index(piece, start)
            found.append(self._slice(piece, start))
            start += len(piece) + gap
        return found

    def _slice(self, piece: str, start: int) -> str:
        return Tracked(piece, self._origins[start : start + len(piece)])


def _placed(pieces: Iterable[str], lengths: Iterable[int]) -> Iterator[tuple[str, int]]:
    """Each piece with its start, where ``lengths`` are those of the pieces with what follows them."""
    start = 0
    for piece, length in zip(pieces, lengths, strict=True):
        yield piece, start
        start += length


def _same(origin: int, count: int) -> array[int]:
    return array("i", (origin,)) * count


def literal(text: str) -> Tracked:
    """The template's own text."""
    return Tracked(text, _same(TEMPLATE, len(text)))


def origins_of(text: str) -> array[int]:
    """Of each character."""
    return text._origins if isinstance(text, Tracked) else _same(OTHER, len(text))


def concat(pieces: Iterable[Any]) -> Tracked:
    """All of them, one after another."""
    texts = list(pieces)
    origins = array("i")
    for text in texts:
        origins += origins_of(text)
    return Tracked("".join(texts), origins)


def formatted(pattern: str, values: tuple[Any, ...], named: dict[str, Any], result: str) -> str:
    """``result``, which is what ``pattern.format`` gives, followed through ``{}``, ``{0}`` and ``{name}``."""
    if set(origins_of(pattern)) - {TEMPLATE}:
        return result
    pieces: list[str] = []
    remaining = iter(values)
    for text, field, specification, conversion in Formatter().parse(pattern):
        pieces.append(literal(text))
        if field is None:
            continue
        if specification or conversion or not re.fullmatch(r"\w*", field):
            return result
        by_place = values[int(field)] if field.isdecimal() else named.get(field)
        pieces.append(str(next(remaining) if not field else by_place))
    found = concat(pieces)
    return found if found == result else result


class Source:
    """The client's texts laid end to end, so that a number is a place in one of them."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        """Where each text stands in what the client sent, such as ``examples.0.review``."""
        self._starts: list[int] = []
        self._end = 0

    def track(self, value: Any, path: str) -> Any:
        """A copy whose strings are tracked. Keys are not: they are names, and no text."""
        if isinstance(value, str):
            start = self._end
            # One place is left out, so that no text goes on where the one before it ends.
            self._end = start + len(value) + 1
            self.paths.append(path)
            self._starts.append(start)
            return Tracked(value, array("i", range(start, start + len(value))))
        if isinstance(value, dict):
            return {key: self.track(item, f"{path}.{key}" if path else key) for key, item in value.items()}
        if isinstance(value, list):
            return [self.track(item, f"{path}.{i}") for i, item in enumerate(value)]
        return value

    def place(self, origin: int) -> tuple[int, int]:
        """Which text, and which of its characters.

        >>> source = Source()
        >>> _ = source.track(["ab", "c"], "list")
        >>> source.place(1), source.place(3)
        ((0, 1), (1, 0))
        """
        low, high = 0, len(self._starts)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._starts[middle] <= origin else (low, middle)
        return low, origin - self._starts[low]


def runs(text: str) -> list[tuple[int, int, int]]:
    """Where a text changes its origin: start, stop, and the origin of the first character.

    >>> runs(literal("ab") + "c" + literal("d"))
    [(0, 2, -1), (2, 3, -2), (3, 4, -1)]
    """
    origins = origins_of(text)
    if not origins:
        return []
    pairs = zip(origins, islice(origins, 1, None), strict=False)
    cuts = [i for i, (before, after) in enumerate(pairs, 1) if after != (before + 1 if before >= 0 else before)]
    return [(start, stop, origins[start]) for start, stop in zip([0, *cuts], [*cuts, len(origins)], strict=True)]
