"""Tools: what the model is told of them, forced calls through the grammar, free calls out of the text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from server.api.text.schemas import Tool
from server.api.text.structure import call_schema
from server.serving.structured import grammar_text
from tests.api.openai.fronts import CHAT, HELLO, TOOLS_TEMPLATE, Front, fronted, tells
from tests.api.scripted import says

COUNT = {
    "type": "function",
    "function": {
        "name": "count",
        "description": "Counts sacks.",
        "parameters": {
            "type": "object",
            "properties": {"sacks": {"$ref": "#/$defs/Sacks"}},
            "required": ["sacks"],
            "$defs": {"Sacks": {"type": "integer"}},
        },
    },
}
STOP = {"type": "function", "function": {"name": "stop_mill"}}
NAMED = {"type": "function", "function": {"name": "count"}}
CALL = '<tool_call>\n{"name": "count", "arguments": {"sacks": 3}}\n</tool_call>'
ARGUMENTS = '{"sacks": 3}'


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with fronted(says("The mill runs."), chat_template=TOOLS_TEMPLATE) as front:
        yield front


def calls_of(answer: Any) -> list[tuple[str, Any]]:
    (choice,) = answer.choices
    ids = [call.id for call in choice.message.tool_calls]
    assert len(set(ids)) == len(ids)
    return [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls]


def streamed(chunks: list[Any]) -> tuple[str, list[tuple[str, str]], str]:
    """Text, calls and finish reason of a stream with one choice, put together as clients do."""
    text, calls, reasons = "", {}, []
    for chunk in chunks:
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        for part in choice.delta.tool_calls or []:
            if part.id is not msgspec.UNSET:
                assert part.index == len(calls) and part.type == "function"
                calls[part.index] = [part.function.name, ""]
            calls[part.index][1] += part.function.arguments
        reasons += [choice.finish_reason] if choice.finish_reason else []
    (reason,) = reasons
    return text, [(name, arguments) for name, arguments in calls.values()], reason


def test_the_template_is_told_of_the_tools_and_of_calls_in_the_history(front: Front) -> None:
    history = [
        {"role": "user", "content": "How many?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "count", "arguments": ARGUMENTS}}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
    ]
    front.post(CHAT, messages=history, tools=[COUNT])
    prompt = front.prompt
    assert f"Tools: {json.dumps(COUNT, ensure_ascii=False)}" in prompt
    assert '<tool_call>\n{"name": "count", "arguments": {"sacks": 3}}\n</tool_call><|im_end|>' in prompt
    assert "<|im_start|>tool\n3<|im_end|>" in prompt


def test_calls_in_the_history_are_text_to_a_template_that_does_not_know_them() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "count", "arguments": ARGUMENTS}}
    with fronted() as front:
        front.post(CHAT, messages=[{"role": "assistant", "content": "Let me see.", "tool_calls": [call]}])
        assert f"assistant\nLet me see.\n{CALL}<|im_end|>" in front.prompt


@pytest.mark.parametrize("arguments", ['{"sa', r'{"sa": "\ud83d"}', '{"sa": 100000000000000000000}', '{"sa": NaN}'])
def test_a_history_with_arguments_that_are_no_sound_json_is_rendered_as_it_is(front: Front, arguments: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "count", "arguments": arguments}}
    front.post(CHAT, messages=[{"role": "assistant", "tool_calls": [call]}])
    assert f'"arguments": {json.dumps(arguments)}' in front.prompt


def test_tool_choice_none_tells_the_model_nothing_and_reads_no_calls() -> None:
    with fronted(says(CALL), chat_template=TOOLS_TEMPLATE) as front:
        answer = front.post(CHAT, tools=[COUNT], tool_choice="none", max_tokens=300, **HELLO)
        assert answer.choices[0].message.content == CALL and answer.choices[0].finish_reason == "stop"
        assert "Tools:" not in front.prompt


@pytest.mark.parametrize("choice", [None, "auto"])
def test_free_calls_are_found_in_the_text_streaming_or_not(choice: str | None) -> None:
    text = f"Let me see.\n{CALL}\n{CALL}"
    with fronted(says(text), chat_template=TOOLS_TEMPLATE) as front:
        answer = front.post(CHAT, tools=[COUNT], tool_choice=choice, max_tokens=300, **HELLO)
        assert calls_of(answer) == [("count", {"sacks": 3})] * 2
        assert answer.choices[0].message.content == "Let me see."
        assert answer.choices[0].finish_reason == "tool_calls"
        chunks = front.stream(CHAT, tools=[COUNT], tool_choice=choice, max_tokens=300, **HELLO)
        assert streamed(chunks) == ("Let me see.", [("count", ARGUMENTS)] * 2, "tool_calls")
        assert front.command.params.grammar is None


def test_a_message_of_calls_alone_has_no_content() -> None:
    with fronted(says(CALL), chat_template=TOOLS_TEMPLATE) as front:
        answer = front.post(CHAT, tools=[COUNT], max_tokens=300, **HELLO)
        assert answer.choices[0].message.content is None
        first = front.stream(CHAT, tools=[COUNT], max_tokens=300, **HELLO)[0].choices[0].delta
        assert first.role == "assistant"


def test_words_instead_of_a_call_are_an_ordinary_answer(front: Front) -> None:
    answer = front.post(CHAT, tools=[COUNT], **HELLO)
    assert answer.choices[0].message.content == "The mill runs."
    assert answer.choices[0].message.tool_calls is msgspec.UNSET
    assert streamed(front.stream(CHAT, tools=[COUNT], **HELLO)) == ("The mill runs.", [], "stop")


def test_without_parallel_calls_the_output_ends_with_the_first() -> None:
    with fronted(says(f"{CALL}\n{CALL}"), chat_template=TOOLS_TEMPLATE) as front:
        answer = front.post(CHAT, tools=[COUNT], parallel_tool_calls=False, max_tokens=300, stop="zzz", **HELLO)
        assert calls_of(answer) == [("count", {"sacks": 3})]
        assert answer.choices[0].finish_reason == "tool_calls"


def test_an_answer_that_was_cut_in_a_call_is_text_with_the_reason_length() -> None:
    with fronted(says(CALL), chat_template=TOOLS_TEMPLATE) as front:
        (choice,) = front.post(CHAT, tools=[COUNT], max_tokens=20, **HELLO).choices
        assert choice.finish_reason == "length" and choice.message.content.startswith("<tool_call>")


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_forced_call_of_one_tool_is_held_to_its_schema(choice: Any) -> None:
    with fronted(tells(ARGUMENTS), chat_template=TOOLS_TEMPLATE) as front:
        answer = front.post(CHAT, tools=[COUNT], tool_choice=choice, logprobs=True, **HELLO)
        assert calls_of(answer) == [("count", {"sacks": 3})]
        assert answer.choices[0].message.content is None and answer.choices[0].finish_reason == "tool_calls"
        schema = {**COUNT["function"]["parameters"], "additionalProperties": False}  # type: ignore[index,dict-item]
        assert front.command.params.grammar == grammar_text({"type": "json", "value": schema})
        assert streamed(front.stream(CHAT, tools=[COUNT], tool_choice=choice, **HELLO)) == (
            "",
            [("count", ARGUMENTS)],
            "tool_calls",
        )


def test_a_forced_call_has_no_arguments_that_the_tool_does_not_name() -> None:
    inner = {"type": "object", "properties": {"items": {"type": "array", "items": {"properties": {"a": {}}}}}}
    closed = call_schema([tool_with(inner)])
    assert closed["additionalProperties"] is False
    assert closed["properties"]["items"]["items"]["additionalProperties"] is False
    assert "additionalProperties" not in inner, "the client's own schema stays as it is"
    for said in ({**inner, "additionalProperties": True}, {**inner, "patternProperties": {"^x": {}}}):
        assert call_schema([tool_with(said)]).get("additionalProperties", True) is True
    joined = {"allOf": [inner, {"type": "object", "properties": {"b": {}}}]}
    assert call_schema([tool_with(joined)]) == {"type": "object", **joined}


def test_the_arguments_of_a_forced_call_are_an_object_also_where_the_schema_does_not_say_so() -> None:
    assert call_schema([tool_with({"properties": {"a": {}}})])["type"] == "object"
    assert call_schema([tool_with({})]) == call_schema([Tool.model_validate(STOP)])


def tool_with(parameters: dict[str, Any]) -> Tool:
    return Tool.model_validate({"type": "function", "function": {"name": "run", "parameters": parameters}})


def test_a_named_tool_among_several_is_the_one_that_is_called() -> None:
    with fronted(says(ARGUMENTS), chat_template=TOOLS_TEMPLATE) as front:
        assert calls_of(front.post(CHAT, tools=[STOP, COUNT], tool_choice=NAMED, **HELLO)) == [("count", {"sacks": 3})]


def test_required_among_several_is_one_schema_of_alternatives() -> None:
    text = '{"name": "count", "arguments": {"sacks": 3}}'
    with fronted(says(text), chat_template=TOOLS_TEMPLATE) as front:
        answer = front.post(CHAT, tools=[STOP, COUNT], tool_choice="required", **HELLO)
        assert calls_of(answer) == [("count", {"sacks": 3})]
        assert streamed(front.stream(CHAT, tools=[STOP, COUNT], tool_choice="required", **HELLO)) == (
            "",
            [("count", ARGUMENTS)],
            "tool_calls",
        )


def test_the_arguments_of_a_forced_call_stream_as_they_come() -> None:
    for tools in ([COUNT], [STOP, COUNT]):
        text = ARGUMENTS if len(tools) == 1 else f'{{"name": "count", "arguments": {ARGUMENTS}}}'
        with fronted(says(text), chat_template=TOOLS_TEMPLATE) as front:
            chunks = front.stream(CHAT, tools=tools, tool_choice="required", **HELLO)
            parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
            assert len([part for part in parts if part.function.arguments]) > 3


def test_a_model_that_was_never_told_of_tools_can_be_forced_but_is_not_left_free() -> None:
    with fronted(says(ARGUMENTS)) as front:
        assert calls_of(front.post(CHAT, tools=[COUNT], tool_choice="required", **HELLO)) == [("count", {"sacks": 3})]
        assert "count" not in front.prompt
        error = front.refused(CHAT, tools=[COUNT], **HELLO)
        assert error.param == "tools" and "tool_choice" in error.message
        assert front.post(CHAT, tools=[], **HELLO).choices[0].message.content == ARGUMENTS


def test_marks_that_are_special_tokens_are_read_as_marks() -> None:
    """Some models have them so, and special tokens have no text."""
    from tests.api.openai.special_marks import fronted_with_special_marks

    with fronted_with_special_marks('{"name": "count", "arguments": {"sacks": 3}}') as front:
        assert calls_of(front.post(CHAT, tools=[COUNT], **HELLO)) == [("count", {"sacks": 3})]
        assert streamed(front.stream(CHAT, tools=[COUNT], **HELLO))[1] == [("count", ARGUMENTS)]


@pytest.mark.parametrize("held_by", [{"stop": [" runs!"]}, {"banned_phrases": [" runs on"]}])
def test_text_that_was_held_back_before_a_special_mark_stays_before_it(held_by: dict[str, Any]) -> None:
    from tests.api.openai.special_marks import fronted_with_special_marks

    with fronted_with_special_marks(json.dumps({"name": "count", "arguments": {}}), before="It runs") as front:
        asked = {"tools": [COUNT], **held_by, **HELLO}
        answer = front.post(CHAT, **asked)
        assert (answer.choices[0].message.content, calls_of(answer)) == ("It runs", [("count", {})])
        assert streamed(front.stream(CHAT, **asked)) == ("It runs", [("count", "{}")], "tool_calls")


def allowed(*names: str, mode: str = "auto") -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_allowed_tools_are_the_only_ones_that_a_chats_model_sees_and_may_have_to_call() -> None:
    with fronted(says(ARGUMENTS), chat_template=TOOLS_TEMPLATE) as front:
        free = front.post(CHAT, tools=[COUNT, STOP], tool_choice=allowed("count"), **HELLO)
        assert free.choices[0].finish_reason == "stop"
        assert '"count"' in front.prompt and "stop_mill" not in front.prompt
        forced = front.post(CHAT, tools=[STOP, COUNT], tool_choice=allowed("count", mode="required"), **HELLO)
        assert calls_of(forced) == [("count", {"sacks": 3})]


def test_the_arguments_of_a_forced_call_are_not_null_where_the_schema_allows_it() -> None:
    assert call_schema([tool_with({"type": ["object", "null"], "properties": {"a": {}}})])["type"] == "object"


LIST = {"type": "function", "function": {"name": "listed", "parameters": {"type": "array"}}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [COUNT], "tool_choice": {"type": "function", "function": {"name": "grind"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": NAMED}, "tool_choice"),
        ({"tools": [COUNT], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [COUNT, STOP, COUNT]}, "tools"),
        ({"tools": [LIST], "tool_choice": "required"}, "tools"),
        ({"tools": [COUNT], "tool_choice": allowed("grind")}, "tool_choice.allowed_tools.tools"),
        ({"tools": [COUNT], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [COUNT], "tool_choice": "required", "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [COUNT], "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [COUNT], "tool_choice": "required", "ignore_eos": True}, "tools"),
    ],
)
def test_what_cannot_be_is_refused_by_name(front: Front, body: dict[str, Any], param: str) -> None:
    error = front.refused(CHAT, **HELLO, **body)
    assert error.param == param and "grammar" not in error.message


def test_a_schema_that_cannot_be_followed_is_refused_as_the_tools(front: Front) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "if": {}, "then": False}}}
    error = front.refused(CHAT, tools=[tool], tool_choice="required", **HELLO)
    assert error.param == "tools" and '"if"' in error.message
