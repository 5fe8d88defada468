"""JSON of a line as people write it by hand: what a parser would change without a word is refused."""

from __future__ import annotations

import json
from typing import Any


class UnclearValue(ValueError):
    """The text is JSON, and what it means is not clear."""


def json_value(text: str, *, is_strict: bool = False) -> Any:
    """The value of one JSON text. With ``is_strict`` also NaN and Infinity are refused, which JSON does not have.

    Raises `UnclearValue`; ``JSONDecodeError`` for other text, and ``RecursionError`` for what is nested too deeply.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_number if is_strict else None)
        json.dumps(value, ensure_ascii=False).encode()
    except (UnclearValue, json.JSONDecodeError):
        raise
    except UnicodeEncodeError:
        raise UnclearValue("a string has half of a surrogate pair, which is not a character.") from None
    except ValueError:
        raise UnclearValue("a number has too many digits.") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in value if names.count(name) > 1)
        raise UnclearValue(f"an object has {twice!r} twice. Give each value its own name.")
    return value


def _refuse_number(name: str) -> None:
    raise UnclearValue(f"{name} is not a number in JSON.")
