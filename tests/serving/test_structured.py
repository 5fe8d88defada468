"""What the front promises of a client's grammar before a model sees it."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from huggingface_hub.inference._generated.types.text_generation import TextGenerationInputGrammarType
from llguidance import LLMatcher, LLTokenizer

from server.client.sandbox import Sandbox
from server.errors import InvalidRequest, UnsupportedGrammar
from server.sandbox.grammars import check_grammar
from server.serving.structured import Grammars, grammar_text

BYTES = LLTokenizer("byte")


def follows(grammar: dict[str, Any], text: str) -> bool:
    """Whether the text is a whole text of the grammar."""
    matcher = LLMatcher(BYTES, grammar_text(grammar), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    raw = list(text.encode())
    return matcher.try_consume_tokens(raw) == len(raw) and matcher.is_accepting()


def json_grammar(schema: Any) -> dict[str, Any]:
    return {"type": "json", "value": schema}


POINT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("grammar", "members", "others"),
    [
        (json_grammar(POINT), ['{"x":1}', '{ "x": -20 }', '{\n  "x":\n\t3}'], ["{}", '{"x":1.5}', '{"x":1,"y":2}']),
        (json_grammar(json.dumps(POINT)), ['{"x":1}'], ["{}"]),
        ({"type": "json_schema", "value": {"name": "point", "schema": POINT}}, ['{"x":1}'], ["{}"]),
        ({"type": "json_object"}, ["{}", '{"a": [1, null, "b"]}'], ["[]", "1", '{"a": }']),
        ({"type": "regex", "value": "[0-9]{3}-[a-f]+"}, ["123-a", "000-ffe"], ["12-a", "123-", "x123-a"]),
        ({"type": "regex", "value": "^a/b\\/\"c\"\n\t$"}, ['a/b/"c"\n\t'], ["a"]),
        ({"type": "regex", "value": "[/]#//"}, ["/#//"], ["/"]),
        ({"type": "regex", "value": "你好|\\p{Greek}+"}, ["你好", "αβγ"], ["你", "a"]),
        ({"type": "choice", "value": ["yes", "no", "yes, but"]}, ["yes", "no", "yes, but"], ["", "y", "yesno"]),
        ({"type": "choice", "value": ['"', "\\n", "\n", "\x00", "😀", "/*", "é | b", "#", ""]},
         ['"', "\\n", "\n", "\x00", "😀", "/*", "é | b", "#", ""], ["b", "\\", "/"]),
        ({"type": "lark", "value": 'start: "a" (B | c)+\nB: /b{2}/\nc: "c" // <not a token>'},
         ["abb", "acbb"], ["a", "ab"]),
        ({"type": "lark", "value": 'start: "<a>" %json {"type": "boolean"} "</a>"'}, ["<a>true</a>"], ["<a></a>"]),
    ],
)  # fmt: skip
def test_a_grammar_of_each_type_takes_its_texts_and_no_others(
    grammar: dict[str, Any], members: list[str], others: list[str]
) -> None:
    assert [text for text in members if not follows(grammar, text)] == []
    assert [text for text in others if follows(grammar, text)] == []
    assert check_grammar(grammar_text(grammar)) is None


def test_what_hugging_faces_client_sends_is_understood() -> None:
    for kind, value in (("json", POINT), ("regex", "a+"), ("json_schema", {"schema": POINT})):
        sent = TextGenerationInputGrammarType(type=kind, value=value)
        assert check_grammar(grammar_text({"type": sent.type, "value": sent.value})) is None


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels - 1):
        schema = {"type": "array", "items": schema}
    return schema


def numbered(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(count)}}


@pytest.mark.parametrize(
    "grammar",
    [
        {"type": "regex", "value": "a" * 1024},
        {"type": "choice", "value": [f"choice {i}" for i in range(1000)]},
        {"type": "lark", "value": 'start: "a"' + " " * (16 * 1024 - 10)},
        json_grammar(nested(16)),
        json_grammar(numbered(1000)),
        json_grammar({"enum": ["x" * 60_000, "y"]}),
    ],
    ids=lambda grammar: grammar["type"],
)
def test_a_grammar_at_its_limit_is_taken(grammar: dict[str, Any]) -> None:
    assert check_grammar(grammar_text(grammar)) is None


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ({}, "grammar.type"),
        ({"type": "yaml", "value": ""}, "json, json_schema, json_object, regex, choice, lark"),
        ({"type": ["json"], "value": {}}, "grammar.type"),
        ({"type": "json"}, "value"),
        ({"type": "json", "value": {}, "strict": True}, "grammar.strict"),
        ({"type": "json_object", "value": {}}, "grammar.value"),
        ({"type": "json_schema", "value": POINT}, "schema"),
        ({"type": "json_schema", "value": {"schema": {}, "strict": True}}, "strict"),
        (json_grammar([1]), "must be a JSON schema"),
        (json_grammar("{"), "not JSON"),
        (json_grammar("[" * 100_000), "65536 bytes"),
        (json_grammar("[" * 60_000), "levels deep"),
        (json_grammar(nested(17)), "16 levels"),
        (json_grammar({"const": json.loads("[" * 40 + "]" * 40)}), "16 levels"),
        (json_grammar(numbered(1001)), "1000 properties"),
        (json_grammar({"allOf": [numbered(600), numbered(600)]}), "1000 properties"),
        (json_grammar({"enum": ["x" * 70_000]}), "65536 bytes"),
        (json_grammar(nested(5_000)), "16 levels"),
        (json_grammar({"anyOf": [{} for _ in range(40_000)]}), "65536 bytes"),
        (json_grammar({"$ref": "http://127.0.0.1:9/x.json"}), "$ref"),
        (json_grammar({"items": {"$ref": "file:///etc/passwd"}}), "$ref"),
        (json_grammar({"$ref": "other.json#/a"}), "$ref"),
        (json_grammar({"type": "string", "minLenght": 3}), "minLenght"),
        (json_grammar({"type": "string", "minlength": 3}), "minlength"),
        (json_grammar({"propertyNames": {"pattern": "^a"}}), "propertyNames"),
        (json_grammar({"if": {}, "then": {"type": "null"}}), '"if"'),
        (json_grammar({"dependentRequired": {"a": ["b"]}}), "dependentRequired"),
        (json_grammar({"contains": {"type": "null"}}), "contains"),
        (json_grammar({"unevaluatedProperties": False}), "unevaluatedProperties"),
        (json_grammar({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (json_grammar({"properties": {"a": {"not": {"type": "null"}}}}), '"not"'),
        (json_grammar({"x-guidance": {"lenient": True}, "type": "string"}), "x-guidance"),
        (json_grammar({"anyOf": {"type": "string"}}), "anyOf"),
        (json_grammar({"properties": ["a"]}), "properties"),
        (json_grammar({"items": [5]}), "must be a JSON schema"),
        (json_grammar({"type": "object", "minProperties": 2}), "minProperties"),
        (json_grammar({"const": "\x01"}), "control character"),
        (json_grammar({"const": "\ud83d"}), "JSON cannot represent"),
        (json_grammar({"const": float("inf")}), "number"),
        ({"type": "regex", "value": ""}, "non-empty"),
        ({"type": "regex", "value": 3}, "must be a non-empty string"),
        ({"type": "regex", "value": "é" * 513}, "1024 bytes"),
        ({"type": "regex", "value": "a\\"}, "backslash"),
        ({"type": "regex", "value": "(?ix) a # b"}, "x flag"),
        ({"type": "regex", "value": "\ud800"}, "valid Unicode"),
        ({"type": "choice", "value": []}, "1 to 1000"),
        ({"type": "choice", "value": ["a"] * 1001}, "1 to 1000"),
        ({"type": "choice", "value": ["a" * 40_000, "b" * 40_000]}, "65536 bytes"),
        ({"type": "choice", "value": ["a", 1]}, "list of strings"),
        ({"type": "choice", "value": "ab"}, "list of strings"),
        ({"type": "lark", "value": "x" * 16_385}, "16384 bytes"),
        ({"type": "lark", "value": "start: <|im_start|>"}, "special tokens"),
        ({"type": "lark", "value": "start: <[5]>"}, "special tokens"),
        ({"type": "lark", "value": "start: a\na[temperature=0.5]: /b/"}, "temperature"),
        ({"type": "lark", "value": 'start: a\na[stop="x"]: /b/'}, "stop"),
        ({"type": "lark", "value": '%llguidance {"allow_invalid_utf8": true}\nstart: "a"'}, "%llguidance"),
        ({"type": "lark", "value": 'start: %json {"type": "string", "minLenght": 3}'}, "minLenght"),
        ({"type": "lark", "value": "start: %json x"}, "no JSON schema"),
    ],
)  # fmt: skip
def test_a_grammar_that_cannot_be_is_refused_by_name(grammar: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        grammar_text(grammar)
    assert message in raised.value.message
    assert raised.value.param is not None and raised.value.param.startswith("grammar")


HOSTILE = {
    "parentheses": {"type": "regex", "value": "(" * 500 + ")" * 500},
    "open parentheses": {"type": "regex", "value": "(" * 1000},
    "nested repetition": {"type": "regex", "value": "(a+)+$"},
    "repeated repetition": {"type": "regex", "value": "((((a{1,100}){1,100}){1,100}){1,100})"},
    "a count far from its letter": {"type": "regex", "value": "(.*a.{20}b.*){3}"},
    "an endless reference": json_grammar({"$ref": "#"}),
    "references in a circle": json_grammar(
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    ),
    "a required circle": json_grammar({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
    "allOf in a circle": json_grammar({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {}]}}, "$ref": "#/$defs/a"}),
    "a thousand million items": json_grammar({"type": "array", "minItems": 10**9, "maxItems": 10**9}),
    "a thousand million characters": json_grammar({"type": "string", "minLength": 10**9}),
    "a product of choices": json_grammar(
        {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {"pattern": "^a.*b.*c$"}}} for j in range(8)]}
                   for i in range(8)]}
    ),
    "a left-recursive rule": {"type": "lark", "value": 'start: start "a"'},
    "many rules": {
        "type": "lark",
        "value": "start: a0\n" + "".join(f"a{i}: a{i + 1} a{i + 1}\n" for i in range(400)) + 'a400: "a"',
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_compiled_or_refused_in_words(name: str) -> None:
    problem = check_grammar(grammar_text(HOSTILE[name]))
    assert problem is None or re.fullmatch(r"[ -~]{10,400}\.", problem)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 3}]}, "Use anyOf"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5) is greater than maximum (3)"),
        ({"type": "strin"}, "Invalid type: strin"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"$ref": "#/$defs/missing"}, "missing"),
    ],
)
def test_what_the_compiler_finds_wrong_is_told_in_words(schema: dict[str, Any], message: str) -> None:
    problem = check_grammar(grammar_text(json_grammar(schema)))
    assert problem is not None and message in problem and "\n" not in problem


@pytest.mark.parametrize("field", ["properties", "patternProperties"])
def test_a_name_cannot_be_written_in_a_second_way_past_its_schema(field: str) -> None:
    schema = {"type": "object", field: {"ab": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
    assert follows(json_grammar(schema), '{"ab": 1, "c\\n": "x"}')
    for key in ("ab", "\\u0061b", "a\\u0062", "a\\b"):
        assert follows(json_grammar(schema), f'{{"{key}": "x"}}') == (key == "a\\b")


def test_grammars_are_checked_in_a_process_of_their_own() -> None:
    async def check() -> list[str | None]:
        sandbox = Sandbox(num_processes=1)
        found: list[str | None] = []
        try:
            grammars = Grammars(sandbox)
            refused = {"type": "regex", "value": "(?=a)"}
            for grammar in (json_grammar(POINT), *HOSTILE.values(), refused, {"type": "choice", "value": ["a"]}):
                try:
                    assert await grammars.text(grammar) == grammar_text(grammar)
                    found.append(None)
                except UnsupportedGrammar as error:
                    found.append(error.message)
        finally:
            await sandbox.close()
        return found

    first, *hostile, refused, last = asyncio.run(check())
    assert first is None and last is None
    assert refused is not None and "look-ahead" in refused
    verdicts = [check_grammar(grammar_text(grammar)) for grammar in HOSTILE.values()]
    assert hostile == [verdict and verdict.replace("The grammar ", "grammar ") for verdict in verdicts]


@pytest.mark.parametrize("name", ["地址", "a b", "Pair[int]", "x-y.z_1~", "%41"])
def test_a_reference_may_have_any_name(name: str) -> None:
    pointer = name.replace("~", "~0").replace("%", "%25")
    schema = {"$defs": {name: {"type": "boolean"}}, "type": "array", "items": {"$ref": f"#/$defs/{pointer}"}}
    assert follows(json_grammar(schema), "[true]")


@pytest.mark.parametrize("kind", ["date", "date-time"])
def test_only_days_of_the_calendar_are_dates(kind: str) -> None:
    grammar = json_grammar({"type": "array", "items": {"type": "string", "format": kind, "allOf": [{}]}})
    rest = "T12:30:59Z" if kind == "date-time" else ""
    real = ["2024-02-29", "2000-02-29", "2023-02-28", "1999-12-31", "2023-04-30", "0400-02-29"]
    false = ["2023-02-29", "1900-02-29", "2024-02-30", "2023-04-31", "2023-13-01", "2023-00-10", "2023-01-00"]
    assert follows(grammar, json.dumps([day + rest for day in real]))
    assert not [day for day in false if follows(grammar, f'["{day}{rest}"]')]
