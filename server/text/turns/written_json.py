"""JSON as a model wrote it: its parts are returned character by character, so no number or escape changes."""

from __future__ import annotations

import json
import re

_DECODER = json.JSONDecoder(strict=False)
_BETWEEN = re.compile(r"[\s,:]*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_CONTROL = re.compile(r"[\x00-\x1f]")


def raw_parts(text: str) -> list[str]:
    """The items of an array, or the names and values of an object in turn. Raises ValueError for a wrong word.

    Braces, commas and colons stand where they belong: `JsonScan` has checked them.

    >>> raw_parts('{"a": 1.10, "b": ["x", 2]}')
    ['"a"', '1.10', '"b"', '["x", 2]']
    """
    text = text.strip()
    parts: list[str] = []
    place = _next_place(text, 1)
    while place < len(text) - 1:
        _, end = _DECODER.raw_decode(text, place)
        parts.append(text[place:end])
        place = _next_place(text, end)
    return parts


def _next_place(text: str, place: int) -> int:
    match = _BETWEEN.match(text, place)
    return place if match is None else match.end()


def with_escapes(text: str) -> str:
    """Control characters in strings become escapes, which JSON requires and models forget.

    >>> with_escapes('{"a": "two\\nlines"}')
    '{"a": "two\\\\nlines"}'
    """
    return _STRING.sub(lambda string: _CONTROL.sub(lambda found: json.dumps(found[0])[1:-1], string[0]), text)
