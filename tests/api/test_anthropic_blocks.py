"""Blocks of /v1/messages: calls of tools and thinking, made, streamed and sent back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.serving.structured import grammar_text
from tests.api.openai import tool_templates
from tests.api.openai.special_marks import fronted_saying
from tests.api.test_anthropic import PATH, stream

CALL = '<tool_call>\n{"name": "count", "arguments": {"sacks": 3}}\n</tool_call>'
ARGUMENTS = '{"sacks": 3}'
SCHEMA = {"type": "object", "properties": {"sacks": {"type": "integer"}}, "required": ["sacks"]}
COUNT = {"name": "count", "description": "Counts.", "input_schema": SCHEMA}
STOP = {"name": "stop_mill", "type": "custom", "input_schema": {"type": "object"}}
ASKED = {"max_tokens": 300, "messages": [{"role": "user", "content": "How many?"}], "tools": [COUNT, STOP]}
CALLED = ("tool_use", {"sacks": 3})


def described(block: dict[str, Any]) -> tuple[str, Any]:
    """Type, and text or input."""
    return block["type"], block["input" if block["type"] == "tool_use" else block["type"]]


def rebuilt(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks that a client puts together of the events."""
    blocks: list[dict[str, Any]] = []
    is_open = False
    for event in events:
        if event["type"] == "content_block_start":
            assert not is_open and event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]))
            is_open, json_text = True, ""
        elif event["type"] == "content_block_delta":
            assert is_open and event["index"] == len(blocks) - 1
            (name, text) = next(item for item in event["delta"].items() if item[0] != "type")
            if name == "partial_json":
                assert event["delta"]["type"] == "input_json_delta"
                json_text += text
            else:
                blocks[-1][name] += text
        elif event["type"] == "content_block_stop":
            is_open = False
            if blocks[-1]["type"] == "tool_use":
                blocks[-1]["input"] = json.loads(json_text)
    assert not is_open
    return blocks


@pytest.mark.parametrize(
    ("text", "blocks", "reason"),
    [
        (CALL, [CALLED], "tool_use"),
        (
            f"Let me see.\n{CALL}\n{CALL}\nDone.",
            [("text", "Let me see."), CALLED, CALLED, ("text", "\nDone.")],
            "tool_use",
        ),
        (f"<think>\nHm.\n</think>\n\n{CALL}", [("thinking", "Hm."), CALLED], "tool_use"),
        ("<think>\nHm.\n</think>\n\nThree.", [("thinking", "Hm."), ("text", "Three.")], "end_turn"),
        ("", [("text", "")], "end_turn"),
    ],
)
def test_blocks_come_in_the_order_of_the_output_whole_and_streamed(text: str, blocks: list[Any], reason: str) -> None:
    with fronted_saying(text, tool_templates.QWEN) as front:
        answer = front.send(PATH, **ASKED).json()
        assert [described(block) for block in answer["content"]] == blocks and answer["stop_reason"] == reason
        ids = [block["id"] for block in answer["content"] if block["type"] == "tool_use"]
        assert len(set(ids)) == len(ids)
        events = stream(front, **ASKED)
        assert [described(block) for block in rebuilt(events)] == blocks
        assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
        assert events[-2]["delta"]["stop_reason"] == reason and events[-2]["usage"] == answer["usage"]
        num_thinking = answer["usage"]["output_tokens_details"]["thinking_tokens"]
        assert (num_thinking > 0) == ("think" in text)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "count"}])
def test_a_forced_call_follows_its_schema_and_its_input_streams_as_it_comes(choice: dict[str, Any]) -> None:
    is_named = choice["type"] == "tool"
    text = ARGUMENTS if is_named else f'{{"name": "count", "arguments": {ARGUMENTS}}}'
    with fronted_saying(text, tool_templates.QWEN) as front:
        answer = front.send(PATH, **ASKED, tool_choice=choice).json()
        assert ([described(block) for block in answer["content"]], answer["stop_reason"]) == ([CALLED], "tool_use")
        if is_named:
            closed = {**SCHEMA, "additionalProperties": False}
            assert front.command.params.grammar == grammar_text({"type": "json", "value": closed})
        events = stream(front, **ASKED, tool_choice=choice)
        assert [described(block) for block in rebuilt(events)] == [CALLED]
        assert len([event for event in events if event["type"] == "content_block_delta"]) > 3


def test_a_forced_call_that_was_cut_has_what_came_of_its_input() -> None:
    with fronted_saying('{"note": "The mill runs by the river"}', tool_templates.QWEN) as front:
        choice = {"type": "tool", "name": "count"}
        answer = front.send(PATH, **{**ASKED, "max_tokens": 14}, tool_choice=choice).json()
        (block,) = answer["content"]
        assert answer["stop_reason"] == "max_tokens" and block["input"]["note"].startswith("The mill")


@pytest.mark.parametrize("value", ["1e400", "1.10", "123456789012345678901234567890", r'"\ud83d"', '"a\\u00e9"'])
def test_an_input_is_returned_as_the_model_wrote_it(value: str) -> None:
    written = f'{{"sacks": {value}}}'
    with fronted_saying(written, tool_templates.QWEN) as front:
        choice = {"type": "tool", "name": "count"}
        assert f'"input":{written}' in front.send(PATH, **ASKED, tool_choice=choice).text
        deltas = [event["delta"] for event in stream(front, **ASKED, tool_choice=choice) if "delta" in event]
        assert "".join(delta.get("partial_json", "") for delta in deltas) == written


def test_two_tools_of_one_name_are_refused() -> None:
    with fronted_saying(CALL, tool_templates.QWEN) as front:
        assert front.refused(PATH, **{**ASKED, "tools": [COUNT, COUNT]}).param == "tools"


def test_a_format_given_twice_is_refused_under_both_names() -> None:
    with fronted_saying("{}", tool_templates.QWEN) as front:
        given = {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
        error = front.refused(PATH, **ASKED, **given, response_format={"type": "json_object"})
        assert error.param == "response_format" and "output_config.format" in error.message


def test_none_describes_no_tools_and_one_call_can_be_all_there_is() -> None:
    with fronted_saying(f"{CALL}\n{CALL}", tool_templates.QWEN) as front:
        answer = front.send(PATH, **ASKED, tool_choice={"type": "none"}).json()
        assert answer["content"][0]["type"] == "text" and "count" not in front.prompt
        one = {"type": "auto", "disable_parallel_tool_use": True}
        answer = front.send(PATH, **ASKED, tool_choice=one).json()
        assert [described(block) for block in answer["content"]] == [CALLED] and '"Counts."' in front.prompt


def test_an_answers_own_blocks_and_results_can_be_sent_back() -> None:
    with fronted_saying(f"<think>\nHm.\n</think>\n\nLet me see.\n{CALL}", tool_templates.QWEN) as front:
        answer = front.send(PATH, **ASKED).json()
        used = answer["content"][-1]["id"]
        for content in ("12 sacks", [{"type": "text", "text": "12 sacks"}]):
            results = [
                {"type": "tool_result", "tool_use_id": used, "content": content},
                {"type": "text", "text": "And?"},
            ]
            turns = [*ASKED["messages"], {"role": "assistant", "content": answer["content"]}]  # type: ignore[misc]
            response = front.send(PATH, **{**ASKED, "messages": [*turns, {"role": "user", "content": results}]})
            assert "x-ignored-fields" not in response.headers
            assert (
                "<|im_start|>assistant\n<think>\nHm.\n</think>\n\nLet me see.\n"
                f"{CALL}<|im_end|>\n<|im_start|>user\n<tool_response>\n12 sacks\n</tool_response><|im_end|>\n"
                "<|im_start|>user\nAnd?<|im_end|>\n"
            ) in front.prompt


def test_the_model_is_told_that_a_result_is_an_error() -> None:
    with fronted_saying("Oh.", tool_templates.QWEN) as front:
        result = {"type": "tool_result", "tool_use_id": "a", "content": "no sacks", "is_error": True}
        front.send(PATH, **{**ASKED, "messages": [{"role": "user", "content": [result]}]})
        assert "Error: no sacks" in front.prompt


def test_thinking_can_be_switched_off_where_the_template_can_and_left_out_everywhere() -> None:
    said = "<think>\nHm.\n</think>\n\nThree."
    with fronted_saying(said, tool_templates.QWEN) as front:
        front.send(PATH, **ASKED, thinking={"type": "disabled"})
        assert front.prompt.endswith("<think>\n\n</think>\n\n")
        response = front.send(PATH, **ASKED, thinking={"type": "enabled", "budget_tokens": 1024})
        assert response.headers["x-ignored-fields"] == "thinking.budget_tokens"
        assert response.json()["content"][0]["type"] == "thinking"
        answer = front.send(PATH, **ASKED, thinking={"type": "adaptive", "display": "omitted"}).json()
        assert [described(block) for block in answer["content"]] == [("text", "Three.")]
    with fronted_saying(said, tool_templates.DEEPSEEK_R1) as front:
        body = {"messages": ASKED["messages"], "max_tokens": 50, "thinking": {"type": "disabled"}}
        assert front.refused(PATH, **body).param == "thinking.type"


def test_a_format_of_the_output_is_a_grammar() -> None:
    with fronted_saying('{"sacks": 3}', tool_templates.DEEPSEEK_R1) as front:
        body = {"messages": ASKED["messages"], "max_tokens": 50}
        answer = front.send(PATH, **body, output_config={"format": {"type": "json_schema", "schema": SCHEMA}}).json()
        assert front.command.params.grammar == grammar_text({"type": "json", "value": SCHEMA})
        assert [described(block) for block in answer["content"]] == [("text", '{"sacks": 3}')]
