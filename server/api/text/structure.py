"""The structure that an answer is to have: OpenAI's, vLLM's and our own fields for it, and forced tool calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from server.api.text.schemas import ResponseFormat, StructuredOutputs, TextBody, Tool
from server.errors import ConflictingParameters, InvalidParameter, InvalidRequest, UnsupportedParameter

RESPONSE_FORMAT = "response_format"
"""The chat's field for a structure."""
ANY_OBJECT = {"type": "json_object"}
HOLD_SCHEMAS = {"items", "prefixItems", "anyOf", "oneOf"}
HOLD_NAMED_SCHEMAS = {"properties", "$defs", "definitions"}
OPEN_OBJECTS = {"additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames"}
COMBINE = {"anyOf", "oneOf", "$ref", "if", "dependentSchemas", "dependencies"}
OF_OBJECTS = {"properties", "required", "additionalProperties", "minProperties", "patternProperties"}
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


class Structure(NamedTuple):
    """A grammar, as `GenerateOptions.grammar` takes it, and the client's field that asks for it."""

    field: str
    grammar: dict[str, Any]

    @property
    def names(self) -> dict[str, str]:
        """What errors about the grammar are to say."""
        return {"grammar.value.schema": self.field, "grammar.value": self.field, "grammar": self.field}


Body = TypeVar("Body", bound=TextBody)


def with_response_format(body: Body, wanted: ResponseFormat | None, field: str) -> Body:
    """The body with the structure that ``field``, a dialect's own name for it, asks for. Raises for two structures."""
    if wanted is None:
        return body
    if body.response_format is not None:
        raise ConflictingParameters(RESPONSE_FORMAT, field, "they are two names of the same option")
    return body.model_copy(update={"response_format": wanted})


def structure_of(
    body: TextBody, forced: Sequence[Tool] | None = None, format_field: str = RESPONSE_FORMAT
) -> Structure | None:
    """What the body's fields ask for. Raises for two structures.

    One of the ``forced`` tools must be called; ``format_field`` is the client's field for ``response_format``.
    """
    found = list(_structures(body, format_field))
    if forced is not None:
        found.append(Structure("tools", {"type": "json", "value": call_schema(forced)}))
    if len(found) > 1:
        raise ConflictingParameters(found[0].field, found[1].field, "an output can have only one structure")
    return found[0] if found else None


def _structures(body: TextBody, format_field: str) -> Iterator[Structure]:
    if body.grammar is not None:
        yield Structure("grammar", body.grammar)
    if body.response_format is not None:
        _check_format(body.response_format)
    if body.response_format is not None and body.response_format.type != "text":
        yield Structure(format_field, _response_format(body.response_format))
    if body.structured_outputs is not None:
        yield from _structured_outputs(body.structured_outputs)
    if body.guided_json is not None:
        yield Structure("guided_json", {"type": "json", "value": body.guided_json})
    if body.guided_regex is not None:
        yield Structure("guided_regex", {"type": "regex", "value": body.guided_regex})
    if body.guided_choice is not None:
        yield Structure("guided_choice", {"type": "choice", "value": body.guided_choice})


def _check_format(wanted: ResponseFormat) -> None:
    """A schema that the type has no place for would be ignored."""
    for name, kind in (("json_schema", "json_schema"), ("value", "json_object")):
        if getattr(wanted, name) is not None and wanted.type != kind:
            raise InvalidParameter("response_format.type", wanted.type, f"must be {kind} where there is a {name}")


def _response_format(wanted: ResponseFormat) -> dict[str, Any]:
    if wanted.type == "json_object":
        schema = wanted.value
    elif wanted.json_schema is None:
        raise InvalidRequest(
            "response_format.json_schema is required by the type json_schema.", param="response_format.json_schema"
        )
    else:
        schema = wanted.json_schema.schema_
    return ANY_OBJECT if schema is None else {"type": "json", "value": schema}


def _structured_outputs(wanted: StructuredOutputs) -> Iterator[Structure]:
    if wanted.grammar is not None:
        raise UnsupportedParameter("structured_outputs.grammar", 'set grammar: {"type": "lark", "value": ...}')
    field = "structured_outputs"
    if wanted.json_ is not None:
        yield Structure(field, {"type": "json", "value": wanted.json_})
    if wanted.regex is not None:
        yield Structure(field, {"type": "regex", "value": wanted.regex})
    if wanted.choice is not None:
        yield Structure(field, {"type": "choice", "value": wanted.choice})
    if wanted.json_object:
        yield Structure(field, ANY_OBJECT)


def call_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """Of one tool the schema of its arguments, of several that of ``{"name", "arguments"}``."""
    if len(tools) == 1:
        return _parameters(tools[0])
    return {"anyOf": [_call_schema(tool, f"#/anyOf/{i}/properties/arguments") for i, tool in enumerate(tools)]}


def _call_schema(tool: Tool, place: str) -> dict[str, Any]:
    """``place`` is where the schema of the arguments will stand."""
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": _moved(_parameters(tool), place)},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _parameters(tool: Tool) -> dict[str, Any]:
    schema = tool.function.parameters
    if not schema:
        return NO_ARGUMENTS
    # Arguments are an object, also where the schema names only their properties or allows null as well.
    types = schema.get("type", "object")
    if "object" not in (types if isinstance(types, list) else [types]):
        raise InvalidRequest(f"The parameters of {tool.function.name} must be an object schema.", param="tools")
    schema = {**schema, "type": "object"}
    return _closed(schema) if _can_be_closed(schema) else schema


def _can_be_closed(schema: Any) -> bool:
    """Whether objects that have only the properties that they name can still follow the schema.

    What is put together of several schemas may need each to allow the others' properties, and a schema may require
    properties that it does not name.

    >>> _can_be_closed({"properties": {"a": {}}, "required": ["a"]}), _can_be_closed({"required": ["a"]})
    (True, False)
    """
    if isinstance(schema, list):
        return all(map(_can_be_closed, schema))
    if not isinstance(schema, dict):
        return True
    names = schema.get("properties") or {}
    is_combined = "allOf" in schema or bool(COMBINE & schema.keys() and OF_OBJECTS & schema.keys())
    needs_others = set(_names(schema.get("required"))) - set(names) or _least(schema) > len(names)
    held = [schema[key] for key in HOLD_SCHEMAS & schema.keys()]
    held += [value for key in HOLD_NAMED_SCHEMAS & schema.keys() for value in _values(schema[key])]
    return not is_combined and not needs_others and all(map(_can_be_closed, held))


def _names(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else []


def _least(schema: dict[str, Any]) -> int:
    least = schema.get("minProperties")
    return least if isinstance(least, int) else 0


def _closed(schema: Any) -> Any:
    """A copy whose objects have the properties that they name and no others, unless the schema says which.

    A schema that says nothing allows any, which no function has arguments for.

    >>> _closed({"type": "object", "properties": {"city": {"type": "string"}}})
    {'type': 'object', 'properties': {'city': {'type': 'string'}}, 'additionalProperties': False}
    """
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _closed(value) if key in HOLD_SCHEMAS else value for key, value in schema.items()}
    for key in HOLD_NAMED_SCHEMAS & found.keys():
        if isinstance(found[key], dict):
            found[key] = {name: _closed(value) for name, value in found[key].items()}
    if "properties" in found and not OPEN_OBJECTS & found.keys():
        found["additionalProperties"] = False
    return found


def _moved(schema: Any, place: str) -> Any:
    """A copy whose references into itself say where it stands now.

    >>> _moved({"items": {"$ref": "#/$defs/Sack"}}, "#/anyOf/0")
    {'items': {'$ref': '#/anyOf/0/$defs/Sack'}}
    """
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: place + value[1:]
        if key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/"))
        else _moved(value, place)
        for key, value in schema.items()
    }
