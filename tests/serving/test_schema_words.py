"""Words of a schema that constrain nothing are accepted, and no schema becomes one that nothing follows."""

from __future__ import annotations

from typing import Any

import pytest

from server.api.text.schemas import Tool
from server.api.text.structure import call_schema
from server.sandbox.grammars import check_grammar
from server.serving.structured import grammar_text
from tests.serving.test_structured import follows, json_grammar

TEXT = {"type": "string", "maxLength": 3}

ANNOTATED: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({**TEXT, "markdownDescription": "x", "ui:order": ["a"], "$comment": "b"}, ['"abc"'], ["1"]),
    ({"enum": ["x"], "enumNames": ["X"], "optional": True}, ['"x"'], ['"X"']),
    ({**TEXT, "contentEncoding": "base64", "contentMediaType": "text/plain", "contentSchema": {}}, ['"a"'], ["1"]),
    ({**TEXT, "format": "postcode"}, ['"abc"'], ['"abcd"']),
    ({"type": "integer", "format": "int64"}, ["12"], ['"a"']),
    ({"type": "object", "propertyNames": {"type": "string", "description": "a"}}, ["{}", '{"a":1}'], ["[]"]),
    ({"type": "object", "propertyNames": True, "unevaluatedProperties": {}, "dependentRequired": {}}, ["{}"], ["[]"]),
    ({"type": "array", "uniqueItems": False, "unevaluatedItems": True, "minContains": 3}, ["[1,1]"], ["{}"]),
    ({"type": "array", "contains": {"type": "null"}, "minContains": 0}, ["[1]"], ["{}"]),
    ({**TEXT, "if": {"minLength": 1}}, ['""'], ["1"]),
    ({**TEXT, "then": False, "else": False}, ['""'], ["1"]),
    ({**TEXT, "not": False}, ['""'], ["1"]),
    ({"anyOf": [{"not": {}}, {"type": "boolean"}]}, ["true"], ["1", "null"]),
    ({"anyOf": [{"not": {"description": "a"}}, {"type": "boolean"}]}, ["true"], ["1"]),
    ({"type": "object", "properties": {"a": {"not": {}}, "b": TEXT}, "required": ["b"], "additionalProperties": False},
     ['{"b":""}'], ['{"a":1,"b":""}', "{}"]),
    ({**TEXT, "nullable": True}, ['"a"', "null"], ["1"]),
    ({"type": "string", "enum": ["a"], "nullable": True}, ['"a"', "null"], ['"b"']),
    ({**TEXT, "nullable": False}, ['"a"'], ["null"]),
    ({"type": "array", "items": [TEXT, {"type": "null"}], "additionalItems": False},
     ['["a",null]'], ['["a",1]', '["a",null,1]']),
    ({**TEXT, "description": "a control character \x0b"}, ['"a"'], ["1"]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "members", "others"), ANNOTATED, ids=lambda value: str(value)[:50])
def test_words_that_constrain_nothing_are_accepted(
    schema: dict[str, Any], members: list[str], others: list[str]
) -> None:
    assert [text for text in members if not follows(json_grammar(schema), text)] == []
    assert [text for text in others if follows(json_grammar(schema), text)] == []


NEED_OTHERS: list[dict[str, Any]] = [
    {"properties": {"a": TEXT}, "required": ["a", "b"]},
    {"properties": {}, "minProperties": 1},
    {"properties": {"a": TEXT}, "anyOf": [{"required": ["b"]}, {"required": ["c"]}]},
    {"properties": {"a": TEXT}, "required": ["a"], "oneOf": [{"properties": {"b": {"const": 1}}, "required": ["b"]}]},
    {"$defs": {"A": {"properties": {"a": TEXT}}}, "properties": {"x": {"$ref": "#/$defs/A", "required": ["b"]}}},
    {"properties": {"x": {"allOf": [{"properties": {"a": TEXT}}, {"required": ["b"]}]}}, "required": ["x"]},
]


@pytest.mark.parametrize("parameters", NEED_OTHERS, ids=lambda value: str(value)[:50])
def test_arguments_that_need_properties_without_a_schema_may_have_them(parameters: dict[str, Any]) -> None:
    tool = Tool.model_validate({"type": "function", "function": {"name": "f", "parameters": parameters}})
    for tools in ([tool], [tool, tool.model_copy()]):
        assert check_grammar(grammar_text(json_grammar(call_schema(tools)))) is None
