"""Sentences about fields, written once it is known what their reader calls each field.

What a client sent stands in a sentence as text, and a field as a field: only fields are renamed.
"""

from __future__ import annotations

import json
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

Names = Mapping[str, str]
"""Our name of a field, or of the first steps of a path to it, and the reader's."""
OUR_NAMES: Names = MappingProxyType({})
MAX_ECHO_CHARACTERS = 64


class Field(str):
    """A field by our name, or a path to it with dots between its steps."""

    __slots__ = ()


class Sentence:
    """Text and fields, in order."""

    def __init__(self, parts: Sequence[str | Field]) -> None:
        self.parts = tuple(parts)

    def written(self, names: Names = OUR_NAMES) -> str:
        """In the names of the reader."""
        return "".join(renamed(part, names) if isinstance(part, Field) else part for part in self.parts)

    def __str__(self) -> str:
        return self.written()


Words = str | Sentence
"""A string is text and names no field."""


def sentence(template: str, **values: Any) -> Sentence:
    """Fill a template: ``{name}`` is a value if there is one of that name, else the field of that name.

    >>> text = sentence("{max_new_tokens} is {value}: it must be at most {limit}.", value="n", limit=8)
    >>> text.written({"max_new_tokens": "max_tokens", "n": "m"})
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


def renamed(path: str, names: Names) -> str:
    """A field's path in the reader's names."""
    head, dot, rest = path.partition(".")
    return names[path] if path in names else names.get(head, head) + dot + rest


@dataclass(frozen=True)
class Reader:
    """How the client that reads an error writes our fields."""

    names: Names = field(default_factory=dict)
    parameters: Collection[str] = ()
    """Fields that stand in the body's ``parameters``."""

    def path(self, field: str) -> str:
        """The field's place in the body."""
        if field.partition(".")[0] in self.parameters:
            return f"parameters.{field}"
        # Some dialects have several words for a field, of which the first is a field.
        return renamed(field, self.names).partition(" ")[0]


def echo(value: Any) -> str:
    """A client's value as it may appear in a message: as JSON, of which all that is visible is as it came, and cut.

    >>> echo([None, True, "a" * 100])[:12], echo("a" * 100)[-3:]
    ('[null, true,', '...')
    """
    try:
        text = _visible(json.dumps(value, ensure_ascii=False)[: MAX_ECHO_CHARACTERS + 1])
    except (TypeError, ValueError, RecursionError):
        text = repr(value).encode("ascii", "backslashreplace").decode("ascii")
    return text if len(text) <= MAX_ECHO_CHARACTERS else text[: MAX_ECHO_CHARACTERS - 3] + "..."


def _visible(text: str) -> str:
    """Characters that are not printed, or that turn the text around, as JSON's escapes."""
    return "".join(character if character.isprintable() else json.dumps(character)[1:-1] for character in text)
