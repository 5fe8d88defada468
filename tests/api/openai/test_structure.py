"""The structure that OpenAI's fields ask for is the grammar that the engine gets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.api.text.schemas import Tool
from server.api.text.structure import call_schema
from server.serving.structured import grammar_text
from tests.api.openai.fronts import CHAT, COMPLETIONS, HELLO, Front, fronted

SCHEMA = {"type": "object", "properties": {"sacks": {"type": "integer"}}, "required": ["sacks"]}
BODIES = {COMPLETIONS: {"prompt": "Hello"}, CHAT: HELLO}


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with fronted() as front:
        yield front


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    ("wanted", "grammar"),
    [
        ({"type": "json_object"}, {"type": "json_object"}),
        ({"type": "json_object", "value": SCHEMA}, {"type": "json", "value": SCHEMA}),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}, {"type": "json", "value": SCHEMA}),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}},
            {"type": "json", "value": SCHEMA},
        ),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, {"type": "json_object"}),
        ({"type": "text"}, None),
    ],
)
def test_a_response_format_is_a_grammar(front: Front, path: str, wanted: Any, grammar: Any) -> None:
    response = front.send(path, response_format=wanted, **BODIES[path])
    assert "x-ignored-fields" not in response.headers
    assert front.command.params.grammar == (None if grammar is None else grammar_text(grammar))


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "must be"),
        ({"response_format": {"type": "text", "json_schema": {}}}, "response_format.type", "must be json_schema"),
        ({"response_format": {"type": "json_schema", "value": {}}}, "response_format.type", "must be json_object"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {"type": "null"}}}}},
            "response_format",
            "response_format has the keyword",
        ),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "response_format", "guided_regex"),
        ({"guided_regex": "("}, "guided_regex", ""),
        ({"guided_choice": []}, "guided_choice", ""),
        ({"structured_outputs": {"grammar": "root ::= 'a'"}}, "structured_outputs.grammar", "lark"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "one structure"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "response_format", "ignore_eos"),
        ({"response_format": {"type": "json_object"}, "min_tokens": 3}, "response_format", "min_tokens"),
    ],
)
def test_a_structure_that_cannot_be_is_refused_in_the_clients_words(
    front: Front, body: dict[str, Any], param: str, words: str
) -> None:
    error = front.refused(CHAT, **HELLO, **body)
    assert error.param == param
    assert words in error.message and "grammar.value" not in error.message


NOPE = {"type": "nope"}
SOUND = {"type": "json_schema", "schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/responses", {"text": {"format": {"type": "json_object"}}, "min_length": 2}, "text.format"),
        ("/v1/responses", {"text": {"format": {"type": "json_object"}}, "guided_regex": "a"}, "text.format"),
        ("/v1/responses", {"text": {"format": {**SOUND, "name": "a", "schema": NOPE}}}, "text.format"),
        ("/v1/responses", {"text": {"format": {**SOUND, "name": "a"}}, "ignore_eos": True}, "text.format"),
        ("/v1/messages", {"output_config": {"format": {**SOUND, "schema": NOPE}}}, "output_config.format"),
        ("/v1/messages", {"output_config": {"format": SOUND}, "min_length": 2}, "output_config.format"),
        ("/v1/responses", {"response_format": {"type": "json_object"}, "min_length": 2}, "response_format"),
    ],
)
def test_a_structure_is_refused_under_the_dialects_own_field(
    front: Front, path: str, body: dict[str, Any], field: str
) -> None:
    prompt = {"input": "a"} if path == "/v1/responses" else {**HELLO, "max_tokens": 4}
    error = front.refused(path, **prompt, **body)
    assert error.param == field and error.message.startswith(field)
    assert field == "response_format" or "response_format" not in error.message


def test_references_of_several_tools_stay_within_each() -> None:
    parameters = {"$defs": {"A": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/A"}, "b": {"$ref": "#"}}}
    tools = [Tool.model_validate({"type": "function", "function": {"name": n, "parameters": parameters}}) for n in "fg"]
    for i, alternative in enumerate(call_schema(tools)["anyOf"]):
        moved = alternative["properties"]["arguments"]["properties"]
        place = f"#/anyOf/{i}/properties/arguments"
        assert moved == {"a": {"$ref": f"{place}/$defs/A"}, "b": {"$ref": place}}
