"""JSON schemas of every kind that structured output follows, made from a number: the same number, the same schema."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

KEYS = [
    "name",
    "id",
    "count",
    "a b",
    "x.y",
    "键",
    "数量",
    "имя",
    "naïve",
    'quo"te',
    "sla/sh",
    "emoji😀",
    "tab\tkey",
    "",
]
WORDS = [
    "red",
    "green",
    "河边",
    "磨坊",
    "好",
    "naïve",
    "😀🚀",
    "two words",
    'say "hi"',
    "back\\slash",
    "new\nline",
    "",
    "Ω",
]
PATTERNS = [
    "^[A-Z]{2}[0-9]{3}$",
    "^(foo|bar)+$",
    "^[一-龥]{2,5}$",
    "ab",
    "^\\d{1,3}(\\.\\d{2})?$",
    "^[^a-z]{3,6}$",
    "z$",
]
FORMATS = ["date", "time", "date-time", "email", "ipv4", "ipv6", "uuid"]
PRIMITIVES: list[Schema] = [{"type": name} for name in ("string", "integer", "number", "boolean", "null")]


def varied_schema(number: int) -> Schema:
    """Its kind goes round the kinds; its details are drawn."""
    draw = random.Random(number)
    kinds = [_object, _array, _any_of, _one_of, _defs, _tree, _map, _scalar, _tuple, _all_of]
    return kinds[number % len(kinds)](draw, 3)


def _scalar(draw: random.Random, depth: int = 0) -> Schema:
    kinds = [_string, _integer, _number, _enum, _const, _pattern, _format, _several_types]
    return draw.choice(kinds)(draw)


def _any(draw: random.Random, depth: int) -> Schema:
    if depth <= 0 or draw.random() < 0.5:
        return _scalar(draw)
    return draw.choice([_object, _array, _any_of, _one_of, _map, _tuple])(draw, depth - 1)


def _string(draw: random.Random) -> Schema:
    least = draw.randint(0, 6)
    return {"type": "string", "minLength": least, "maxLength": least + draw.randint(0, 8), "description": "A text."}


def _integer(draw: random.Random) -> Schema:
    low = draw.randint(-1000, 1000)
    bounds = [
        {},
        {"minimum": low, "maximum": low + draw.randint(0, 500)},
        {"exclusiveMinimum": low},
        {"exclusiveMaximum": low},
        {"minimum": 0, "maximum": 10_000, "multipleOf": draw.choice([2, 5, 10])},
    ]
    return {"type": "integer", **draw.choice(bounds)}


def _number(draw: random.Random) -> Schema:
    low = draw.randint(-40, 40) / 4
    bounds = [{}, {"minimum": low, "exclusiveMaximum": low + 2.5}, {"exclusiveMinimum": 0, "maximum": 1}]
    return {"type": "number", **draw.choice(bounds)}


def _enum(draw: random.Random) -> Schema:
    return {"enum": draw.sample([*WORDS, 1, -2.5, None, True, [1, "好"], {"k": "值"}], draw.randint(1, 6))}


def _const(draw: random.Random) -> Schema:
    return {"const": draw.choice([*WORDS, 0, False, None, ["a", {"b": []}], {"键": {"值": 1}}])}


def _pattern(draw: random.Random) -> Schema:
    return {"type": "string", "pattern": draw.choice(PATTERNS)}


def _format(draw: random.Random) -> Schema:
    return {"type": "string", "format": draw.choice(FORMATS)}


def _several_types(draw: random.Random) -> Schema:
    return {"type": draw.sample(["string", "integer", "boolean", "null"], draw.randint(2, 3)), "maxLength": 5}


def _object(draw: random.Random, depth: int) -> Schema:
    names = draw.sample(KEYS, draw.randint(0, 5))
    made: Schema = {
        "type": "object",
        "title": "An object",
        "properties": {name: _any(draw, depth) for name in names},
        "required": draw.sample(names, draw.randint(0, len(names))),
    }
    others = draw.choice([None, False, False, False, _scalar(draw)])
    return made if others is None else {**made, "additionalProperties": others}


def _map(draw: random.Random, depth: int) -> Schema:
    if draw.random() < 0.5:
        least = draw.randint(0, 1)
        limits = {"minProperties": least, "maxProperties": least + draw.randint(0, 3)}
        return {"type": "object", "additionalProperties": _any(draw, depth - 1), **limits}
    names = {"^x-[a-z]{1,4}$": _any(draw, depth - 1), "^数": {"type": "integer"}}
    return {"type": "object", "patternProperties": names, "additionalProperties": False}


def _array(draw: random.Random, depth: int) -> Schema:
    least = draw.randint(0, 3)
    return {"type": "array", "items": _any(draw, depth - 1), "minItems": least, "maxItems": least + draw.randint(0, 3)}


def _tuple(draw: random.Random, depth: int) -> Schema:
    first = [_any(draw, depth - 1) for _ in range(draw.randint(1, 3))]
    return {"type": "array", "prefixItems": first, "items": draw.choice([False, _scalar(draw)]), "minItems": len(first)}


def _any_of(draw: random.Random, depth: int) -> Schema:
    return {"anyOf": [_any(draw, depth - 1) for _ in range(draw.randint(2, 4))]}


def _one_of(draw: random.Random, depth: int) -> Schema:
    """Told apart by a constant, or by type."""
    if draw.random() < 0.5:
        return {"oneOf": draw.sample(PRIMITIVES[:1] + PRIMITIVES[2:], draw.randint(2, 4))}
    kinds = draw.sample(["circle", "方", "line"], 2)
    return {"oneOf": [_kind(kind, _any(draw, depth - 1)) for kind in kinds]}


def _kind(kind: str, value: Schema) -> Schema:
    properties = {"kind": {"const": kind}, "value": value}
    return {"type": "object", "properties": properties, "required": ["kind"], "additionalProperties": False}


def _all_of(draw: random.Random, depth: int) -> Schema:
    first, second = ({"type": "object", "properties": {key: _any(draw, depth - 2)}, "required": [key]} for key in "ab")
    return {"allOf": [first, second]}


def _defs(draw: random.Random, depth: int) -> Schema:
    names = ["point", "地址"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "first": {"$ref": "#/$defs/point"},
            "then": {"type": "array", "items": {"$ref": "#/$defs/地址"}},
        },
        "required": ["first"],
        "additionalProperties": False,
        "$defs": {name: _any(draw, depth - 1) for name in names},
    }


def _tree(draw: random.Random, depth: int) -> Schema:
    node = {
        "type": "object",
        "properties": {
            "value": _scalar(draw),
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": draw.randint(1, 3)},
        },
        "required": ["value"],
        "additionalProperties": False,
    }
    return {"$defs": {"node": node}, "$ref": "#/$defs/node"}
