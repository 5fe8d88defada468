"""Sentences about fields, written once it is known what their reader calls each field.

What a client sent stands in a sentence as text, and a field as a field: only fields are renamed.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from typing import Any

Names = Mapping[str, str]
"""Our name of a field, or of the first steps of a path to it, and the reader's."""
MAX_ECHO_CHARACTERS = 64


class Field(str):
    """A field by our name, or a path to it with dots between its steps."""

    __slots__ = ()


class Sentence:
    """Text and fields, in order."""

    def __init__(self, parts: Sequence[str | Field]) -> None:
        self.parts = tuple(parts)

    def written(self, dialects: Sequence[Names] = ()) -> str:
        """In the names of the reader; each of ``dialects`` renames what the one before it wrote."""
        return "".join(renamed(part, dialects) if isinstance(part, Field) else part for part in self.parts)

    def __str__(self) -> str:
        return self.written()


Words = str | Sentence
"""A string is text and names no field."""


def sentence(template: str, **values: Any) -> Sentence:
    """Fill a template: ``{name}`` is a value if there is one of that name, else the field of that name.

    >>> text = sentence("{max_new_tokens} is {value}: it must be at most {limit}.", value="n", limit=8)
    >>> text.written([{"max_new_tokens": "max_tokens", "n": "m"}])
    'max_tokens is n: it must be at most 8.'
    """
    parts: list[str | Field] = []
    for text, name, _, _ in string.Formatter().parse(template):
        parts.append(text)
        if name is not None:
            value = values.get(name, Field(name))
            parts += value.parts if isinstance(value, Sentence) else [value if isinstance(value, Field) else str(value)]
    return Sentence(parts)


def listed(names: Sequence[str]) -> Sentence:
    """Fields with commas between."""
    return Sentence([part for name in names for part in (", ", Field(name))][1:])


def renamed(path: str, dialects: Sequence[Names]) -> str:
    """A field's path in the reader's names."""
    for names in dialects:
        head, dot, rest = path.partition(".")
        path = names[path] if path in names else names.get(head, head) + dot + rest
    return path


def echo(value: Any) -> str:
    """A client's value as it may appear in a message: as JSON in ASCII, and cut.

    >>> echo([None, True, "a" * 100])[:12], echo("a" * 100)[-3:]
    ('[null, true,', '...')
    """
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = repr(value).encode("ascii", "backslashreplace").decode("ascii")
    return text if len(text) <= MAX_ECHO_CHARACTERS else text[: MAX_ECHO_CHARACTERS - 3] + "..."
