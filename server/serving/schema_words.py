"""Which words of a JSON schema constrain its value, and which of them are followed.

A word that constrains is followed or refused by name. Every other word is an annotation, known or not, and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

SCHEMAS = frozenset({"additionalProperties", "items"})
LISTS_OF_SCHEMAS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
MAPS_OF_SCHEMAS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
VALUES = frozenset(
    {"type", "const", "enum", "required", "minProperties", "maxProperties", "minItems", "maxItems", "minLength",
     "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
     "$ref", "$id", "$anchor", "$schema"}
)  # fmt: skip
NAMES = frozenset({"$defs", "definitions", "$id", "$anchor", "$schema"})
"""Words that only give names to schemas."""
FOLLOWED = SCHEMAS | LISTS_OF_SCHEMAS | MAPS_OF_SCHEMAS | VALUES
FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
"""Other formats are annotations, as all are by JSON Schema's default."""

Node = Mapping[str, Any]


def allows_all(schema: Any) -> bool:
    """Whether the schema constrains nothing."""
    return schema is True or (isinstance(schema, Mapping) and not any(constrains(word, schema) for word in schema))


def allows_none(schema: Any) -> bool:
    """Whether the schema is one of the two ways to write that nothing is allowed."""
    return schema is False or (isinstance(schema, Mapping) and allows_all(schema.get("not", False)))


def _allows_strings(schema: Any) -> bool:
    """Whether all strings are allowed, which the names of an object's properties are."""
    if not isinstance(schema, Mapping):
        return schema is True
    types = schema.get("type", "string")
    others = {word: value for word, value in schema.items() if word != "type"}
    return allows_all(others) and "string" in (types if isinstance(types, list) else [types])


_ALWAYS_CONSTRAIN = (
    "$dynamicRef", "$recursiveRef", "extends", "disallow", "divisibleBy", "formatMinimum", "formatMaximum",
    "formatExclusiveMinimum", "formatExclusiveMaximum", "x-guidance",
)  # fmt: skip
"""The last one is not of JSON Schema: it would set options of the compiler."""
_NEUTRAL: dict[str, Callable[[Node], bool]] = {
    **dict.fromkeys(_ALWAYS_CONSTRAIN, lambda _: False),
    "not": lambda node: node["not"] is False,
    "if": lambda node: not {"then", "else"} & node.keys(),
    "then": lambda node: "if" not in node or allows_all(node["then"]),
    "else": lambda node: "if" not in node or allows_all(node["else"]),
    "contains": lambda node: node.get("minContains") == 0 and "maxContains" not in node,
    "minContains": lambda node: "contains" not in node or node["minContains"] in (0, 1),
    "maxContains": lambda node: "contains" not in node,
    "uniqueItems": lambda node: node["uniqueItems"] is False,
    "propertyNames": lambda node: _allows_strings(node["propertyNames"]),
    "unevaluatedProperties": lambda node: allows_all(node["unevaluatedProperties"]),
    "unevaluatedItems": lambda node: allows_all(node["unevaluatedItems"]),
    # Beside a list of items it is written in another way, else it means nothing.
    "additionalItems": lambda _: True,
    "dependentRequired": lambda node: not node["dependentRequired"],
    "dependentSchemas": lambda node: not node["dependentSchemas"],
    "dependencies": lambda node: not node["dependencies"],
}
"""Words that constrain and are not followed: where each constrains nothing."""


def constrains(word: str, node: Node) -> bool:
    """Whether the word constrains the values of its schema."""
    if word in _NEUTRAL:
        return not _NEUTRAL[word](node)
    if word == "format":
        return node["format"] in FORMATS
    return word in FOLLOWED - NAMES


def unsupported(node: Node) -> str | None:
    """The first word that constrains and is not followed, if there is one."""
    if allows_none(node):
        return None
    others = (word for word in node if word not in FOLLOWED)
    return next((word for word in others if constrains(word, node) or _is_misspelt(word)), None)


def _letters(word: str) -> str:
    return "".join(sorted(word[:32].lower()))


_KNOWN_LETTERS = frozenset(map(_letters, FOLLOWED | _NEUTRAL.keys()))


def _is_misspelt(word: str) -> bool:
    """Whether the word has the letters of one that constrains, such as ``minLenght`` and ``minlength``."""
    return word not in _NEUTRAL and _letters(word) in _KNOWN_LETTERS


def simplify(node: dict[str, Any]) -> None:
    """Write a schema that has no unsupported word in words that are followed alone."""
    if allows_none(node):
        node.clear()
        node["anyOf"] = [False]
        return
    if isinstance(node.get("items"), list):
        node["prefixItems"] = node.pop("items")
        if isinstance(node.get("additionalItems"), bool | dict):
            node["items"] = node["additionalItems"]
    if node.get("nullable") is True and "type" in node:
        _allow_null(node)
    for word in [word for word in node if word not in FOLLOWED]:
        del node[word]
    if "format" in node and node["format"] not in FORMATS:
        del node["format"]


def _allow_null(node: dict[str, Any]) -> None:
    """OpenAPI's ``nullable``: null beside the type."""
    types = node["type"] if isinstance(node["type"], list) else [node["type"]]
    node["type"] = [*types, *([] if "null" in types else ["null"])]
    if "const" in node:
        node["enum"] = [node.pop("const")]
    if isinstance(node.get("enum"), list) and None not in node["enum"]:
        node["enum"] = [*node["enum"], None]
