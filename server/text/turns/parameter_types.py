"""The JSON types that a function's schema allows for one parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MAX_DEPTH = 8
SAYS_TYPE = {"properties": "object", "additionalProperties": "object", "required": "object", "items": "array"}
"""Words that only one type has a use for, where a schema leaves ``type`` out."""
TYPE_NAMES = {str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}


def parameter_types(parameters: Mapping[str, Any], key: str) -> set[str]:
    """Empty where the schema does not say. References into the schema are followed."""
    return set(_types(_at(parameters, ["properties", key]), parameters, 0))


def _at(schema: Any, path: list[str]) -> Any:
    for name in path:
        schema = schema.get(name) if isinstance(schema, Mapping) else None
    return schema


def _types(schema: Any, root: Mapping[str, Any], depth: int) -> Iterator[str]:
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return
    named = schema.get("type", [])
    yield from [named] if isinstance(named, str) else [name for name in named if isinstance(name, str)]
    if "type" not in schema:
        yield from (name for word, name in SAYS_TYPE.items() if word in schema)
        yield from (TYPE_NAMES.get(type(value), "object") for value in _choices(schema))
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        path = [name.replace("~1", "/").replace("~0", "~") for name in reference.split("/")[1:]]
        yield from _types(_at(root, path), root, depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        for choice in schema[key] if isinstance(schema.get(key), list) else []:
            yield from _types(choice, root, depth + 1)


def _choices(schema: Mapping[str, Any]) -> list[Any]:
    listed = schema.get("enum")
    return [*(listed if isinstance(listed, list) else []), *([schema["const"]] if "const" in schema else [])]
