"""What a body must be before any schema sees it: one JSON value, strictly, that every reader understands alike."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from server.api.http.errors import InvalidJson
from server.sentences import echo

MAX_DEPTH = 32
MAX_INTEGER_DIGITS = 19
LEAST_INTEGER = -(2**63)
"""With at most 19 digits every integer above it has 64 bits, which is what the server's processes send each other."""
MAX_KEYS = 1024
"""Of one object. Every unknown key is an error of its own to the schema, and no body has so many fields."""
LONE_SURROGATE_CANDIDATE = re.compile(rb"\\u[dD][89a-fA-F]")


def strict_json(body: bytes) -> Any:
    """The body's value. Raises `InvalidJson` unless it is one strict JSON value.

    Stricter than `json.loads`: no NaN, infinities or numbers that overflow to them, no duplicate keys, no lone
    surrogates, no integer of more than 19 digits or 64 bits, no nesting deeper than 32, no object of more than 1024
    keys.
    """
    if not body:
        raise InvalidJson("The body is empty. Send a JSON object.")
    if body.startswith(b"\xef\xbb\xbf"):
        raise InvalidJson("The body begins with a byte order mark. Send UTF-8 without one.")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidJson(f"The body is not UTF-8: byte {error.start} does not fit.") from None
    value = _parse(text)
    _check_depth(value, body)
    if LONE_SURROGATE_CANDIDATE.search(body):
        _check_surrogates(value)
    return value


def _parse(text: str) -> Any:
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_integer
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidJson(f"The body is not JSON: {error.msg[:1].lower()}{error.msg[1:]} at {where}.") from None
    except RecursionError:
        raise _too_deep() from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise InvalidJson(f"An object has more than {MAX_KEYS} keys.")
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidJson(f"The key {echo(name)} appears twice in one object.")
        found[name] = value
    return found


def _constant(name: str) -> float:
    raise InvalidJson(f"{name} is not JSON. Numbers must be finite.")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise InvalidJson(f"The number {echo(digits)} is too large. Numbers must be finite.")
    return value


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_INTEGER_DIGITS:
        raise InvalidJson(f"An integer has more than {MAX_INTEGER_DIGITS} digits.")
    value = int(digits)
    if value < LEAST_INTEGER:
        raise InvalidJson(f"The integer {digits} does not fit into 64 bits.")
    return value


def _check_depth(value: Any, body: bytes) -> None:
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> InvalidJson:
    return InvalidJson(f"The body is nested deeper than {MAX_DEPTH} levels.")


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidJson("A string in the body has half of a surrogate pair, which is not a character.") from None
