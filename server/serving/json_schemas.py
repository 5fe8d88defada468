"""How large a client's JSON schema may be, and what the compiler is given of it.

A word that would constrain the output and is not followed is refused by name: nothing is silently ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from server.errors import InvalidParameter, UnsupportedGrammar
from server.sentences import Field, echo, sentence
from server.serving.schema_words import LISTS_OF_SCHEMAS, MAPS_OF_SCHEMAS, SCHEMAS, simplify, unsupported

MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 16
"""Schemas within schemas, and objects or lists within a constant."""
MAX_SCHEMA_PROPERTIES = 1_000

REAL_DAY = (
    "^(?:[0-9]{4}-(?:0[13-9]|1[0-2]|02-(?:[01]|2[0-8]))"
    "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
)
"""How a date begins: llguidance's own format has a 29th of February every year."""
ASCII_IN_REFERENCES = "#/%$!&'()*+,;=:@?"
_CONTROL_CHARACTER = re.compile(r"(?<!\\)(?:\\\\)*\\u00[01][0-9a-f]")

OPTIONS = {
    # A model that repeats itself could fill its whole output with white space.
    "whitespace_pattern": " |\n[ \t]{0,64}",
    # With escapes by number a key could be written in a second way, past the schema of its name.
    "json_allowed_escapes": 'nrbtf\\"',
}


def schema_text(schema: Any, field: str) -> str:
    """The schema as llguidance's compiler takes it. Raises for what is too large, unknown, or elsewhere on the net."""
    if not isinstance(schema, dict):
        raise InvalidParameter(field, schema, "must be a JSON schema, an object")
    # First of all its size, so that nothing after takes long.
    text = _encoded(schema, field)
    if len(text.encode()) > MAX_SCHEMA_BYTES:
        raise _refusal(field, "is a schema of more than {limit} bytes.", limit=MAX_SCHEMA_BYTES)
    num_properties = 0
    compiled = json.loads(text)
    # A schema is changed before those within it are visited.
    for node in _schemas(compiled, field):
        _check_words(node, field)
        simplify(node)
        num_properties += _check_names(node, field)
        if num_properties > MAX_SCHEMA_PROPERTIES:
            raise _refusal(field, "has more than {limit} properties in all.", limit=MAX_SCHEMA_PROPERTIES)
        _adapt(node)
    text = json.dumps({"x-guidance": OPTIONS, **compiled}, separators=(",", ":"))
    if _CONTROL_CHARACTER.search(text):
        raise _refusal(field, "contains a control character that JSON can only write as an escape.")
    return text


def _adapt(node: dict[str, Any]) -> None:
    """Say in a schema what llguidance would understand otherwise."""
    if node.get("format") in ("date", "date-time"):
        node["allOf"] = [*node.get("allOf", []), {"pattern": REAL_DAY}]
    if "$ref" in node:
        # A name in Chinese, say, stands in a reference as it is, as pydantic writes it.
        node["$ref"] = quote(node["$ref"], safe=ASCII_IN_REFERENCES)


def parsed(text: str, field: str) -> Any:
    """A schema that came as a string, as Text Generation Inference takes it."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_SCHEMA_BYTES:
        raise _refusal(field, "is a schema of more than {limit} bytes.", limit=MAX_SCHEMA_BYTES)
    try:
        return json.loads(text)
    except RecursionError:
        raise _too_deep(field) from None
    except ValueError as error:
        raise InvalidParameter(field, text, f"is a string that is not JSON ({error})") from None


def _encoded(schema: dict[str, Any], field: str) -> str:
    try:
        text = json.dumps(schema, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()
    except RecursionError:
        raise _too_deep(field) from None
    except ValueError:
        raise _refusal(field, "contains a number or a string that JSON cannot represent.") from None
    return text


def _schemas(root: dict[str, Any], field: str) -> Iterator[dict[str, Any]]:
    """Every schema within the schema, itself included."""
    waiting: list[tuple[Any, int]] = [(root, 1)]
    while waiting:
        node, depth = waiting.pop()
        if isinstance(node, bool):
            continue
        if not isinstance(node, dict):
            raise InvalidParameter(field, node, "must be a JSON schema in all of its parts")
        if depth > MAX_SCHEMA_DEPTH:
            raise _too_deep(field)
        yield node
        waiting += [(child, depth + 1) for child in _children(node, field)]


def _children(node: dict[str, Any], field: str) -> Iterator[Any]:
    for key, value in node.items():
        if key in SCHEMAS:
            yield value
        elif key in LISTS_OF_SCHEMAS:
            if not isinstance(value, list):
                raise _refusal(field, "has {key} {value}: it must be a list of schemas.", key=key, value=echo(value))
            yield from value
        elif key in MAPS_OF_SCHEMAS:
            if not isinstance(value, dict):
                raise _refusal(field, "has {key} {value}: it must be an object of schemas.", key=key, value=echo(value))
            yield from value.values()


def _check_words(node: dict[str, Any], field: str) -> None:
    """Check a schema but for the schemas in it."""
    if (word := unsupported(node)) is not None:
        raise _refusal(field, "has the keyword {word}, which is not supported.", word=echo(word))
    for key, value in node.items():
        if key == "$ref" and not (isinstance(value, str) and value.startswith("#")):
            template = "has the $ref {value}: only one within the schema, #..., is followed."
            raise _refusal(field, template, value=echo(value))
        if key not in SCHEMAS | LISTS_OF_SCHEMAS | MAPS_OF_SCHEMAS:
            _check_depth(value, field)


def _check_names(node: dict[str, Any], field: str) -> int:
    """How many properties the schema names, without those in it."""
    names = {*_strings(node.get("properties", {})), *_strings(node.get("required", []))}
    _check_least(node, names, field)
    return len(names) + len(_strings(node.get("patternProperties", {})))


def _strings(value: Any) -> list[str]:
    """The names in an object or list; what is neither is refused elsewhere."""
    return [name for name in value if isinstance(name, str)] if isinstance(value, dict | list) else []


def _check_least(node: dict[str, Any], names: set[str], field: str) -> None:
    """A name that the schema does not list may come twice in an object, and counts once."""
    least = node.get("minProperties", 0)
    if isinstance(least, int) and least > len(names) + 1:
        template = "has minProperties {least}, and it can be at most one more than the number of named properties."
        raise _refusal(field, template, least=least)


def _check_depth(value: Any, field: str) -> None:
    level = [value]
    for _ in range(MAX_SCHEMA_DEPTH + 1):
        level = [child for node in level if isinstance(node, dict | list) for child in _items(node)]
        if not level:
            return
    raise _too_deep(field)


def _items(node: dict[str, Any] | list[Any]) -> list[Any]:
    return list(node.values()) if isinstance(node, dict) else node


def _too_deep(field: str) -> UnsupportedGrammar:
    return _refusal(field, "is nested more than {limit} levels deep.", limit=MAX_SCHEMA_DEPTH)


def _refusal(field: str, template: str, **values: Any) -> UnsupportedGrammar:
    return UnsupportedGrammar(sentence("{field} " + template, field=Field(field), **values))
