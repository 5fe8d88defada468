"""Items of /v1/responses: calls of functions and reasoning, made, streamed and sent back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.serving.structured import grammar_text
from tests.api.openai import tool_templates
from tests.api.openai.fronts import Front, fronted
from tests.api.openai.special_marks import fronted_saying
from tests.api.openai.test_responses import PATH, stream

CALL = '<tool_call>\n{"name": "count", "arguments": {"sacks": 3}}\n</tool_call>'
ARGUMENTS = '{"sacks": 3}'
PARAMETERS = {"type": "object", "properties": {"sacks": {"type": "integer"}}, "required": ["sacks"]}
COUNT = {"type": "function", "name": "count", "description": "Counts.", "parameters": PARAMETERS, "strict": True}
STOP = {"type": "function", "name": "stop_mill", "parameters": None}
NAMED = {"type": "function", "name": "count"}
ASKED = {"input": "How many?", "tools": [COUNT, STOP], "max_output_tokens": 300}


def whole(front: Front, **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = front.send(PATH, **body).json()
    return answer


def described(item: dict[str, Any]) -> tuple[str, str]:
    """Type and text, or arguments."""
    text = item["arguments"] if item["type"] == "function_call" else "".join(part["text"] for part in item["content"])
    return item["type"], text


def rebuilt(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output that a client puts together of the events; each item's events are whole and in order."""
    items: list[dict[str, Any]] = []
    for event in events:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["output_index"] == len(items) and event["item"]["status"] == "in_progress"
            items.append({**event["item"], "text": ""})
        elif kind.endswith(".delta"):
            assert (event["item_id"], event["output_index"]) == (items[-1]["id"], len(items) - 1)
            items[-1]["text"] += event["delta"]
        elif kind in ("response.output_text.done", "response.reasoning_text.done"):
            assert event["text"] == items[-1]["text"]
        elif kind == "response.function_call_arguments.done":
            assert (event["arguments"], event["name"]) == (items[-1]["text"], items[-1]["name"])
        elif kind == "response.output_item.done":
            assert described(event["item"])[1] == items[-1]["text"] and event["item"]["id"] == items[-1]["id"]
            items[-1] = {**items[-1], **event["item"]}
    return [{key: value for key, value in item.items() if key != "text"} for item in items]


@pytest.mark.parametrize(
    ("text", "items"),
    [
        (CALL, [("function_call", ARGUMENTS)]),
        (
            f"Let me see.\n{CALL}\n{CALL}\nDone.",
            [("message", "Let me see."), *[("function_call", ARGUMENTS)] * 2, ("message", "\nDone.")],
        ),
        (f"<think>\nHm.\n</think>\n\n{CALL}", [("reasoning", "Hm."), ("function_call", ARGUMENTS)]),
        ("<think>\nHm.\n</think>\n\nThree.", [("reasoning", "Hm."), ("message", "Three.")]),
        ("", [("message", "")]),
    ],
)
def test_items_come_in_the_order_of_the_output_whole_and_streamed(text: str, items: list[Any]) -> None:
    with fronted_saying(text, tool_templates.QWEN) as front:
        answer = whole(front, **ASKED)
        assert [described(item) for item in answer["output"]] == items
        assert answer["status"] == "completed" and {item["status"] for item in answer["output"]} == {"completed"}
        assert len({item["id"] for item in answer["output"]}) == len(items)
        events = stream(front, **ASKED)
        last = events[-1]["response"]
        assert rebuilt(events) == last["output"] and events[-1]["type"] == "response.completed"
        assert [described(item) for item in last["output"]] == items
        num_reasoning = answer["usage"]["output_tokens_details"]["reasoning_tokens"]
        assert (num_reasoning > 0) == ("think" in text) and last["usage"] == answer["usage"]


def test_a_calls_events_have_their_names_and_order() -> None:
    with fronted_saying(CALL, tool_templates.QWEN) as front:
        events = stream(front, **ASKED)
        assert [event["type"].removeprefix("response.") for event in events] == [
            "created",
            "in_progress",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]
        item = events[-2]["item"]
        assert item["name"] == "count" and item["call_id"] != item["id"] and json.loads(item["arguments"])


def test_the_tools_and_the_choice_are_told_again() -> None:
    with fronted_saying("No.", tool_templates.QWEN) as front:
        answer = whole(front, **ASKED, tool_choice="auto", parallel_tool_calls=False)
        assert answer["tools"] == [COUNT, {**STOP, "description": None, "strict": None}]
        assert (answer["tool_choice"], answer["parallel_tool_calls"]) == ("auto", False)
        assert '"description": "Counts."' in front.prompt


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        NAMED,
        {"type": "allowed_tools", "mode": "required", "tools": [NAMED]},
    ],
)
def test_a_forced_call_follows_its_schema_and_its_arguments_stream_as_they_come(choice: Any) -> None:
    is_named = choice != "required"
    text = ARGUMENTS if is_named else f'{{"name": "count", "arguments": {ARGUMENTS}}}'
    with fronted_saying(text, tool_templates.QWEN) as front:
        answer = whole(front, **ASKED, tool_choice=choice)
        assert [described(item) for item in answer["output"]] == [("function_call", ARGUMENTS)]
        assert answer["output"][0]["name"] == "count" and answer["tool_choice"] == choice
        if is_named:
            closed = {**PARAMETERS, "additionalProperties": False}
            assert front.command.params.grammar == grammar_text({"type": "json", "value": closed})
        events = stream(front, **ASKED, tool_choice=choice)
        assert rebuilt(events) == events[-1]["response"]["output"]
        assert len([event for event in events if event["type"] == "response.function_call_arguments.delta"]) > 3


def test_allowed_tools_are_the_only_ones_that_the_model_sees() -> None:
    with fronted_saying("No.", tool_templates.QWEN) as front:
        allowed = {"type": "allowed_tools", "mode": "auto", "tools": [NAMED]}
        whole(front, **ASKED, tool_choice=allowed)
        assert "count" in front.prompt and "stop_mill" not in front.prompt
        unknown = {**allowed, "tools": [{"type": "function", "name": "grind"}]}
        assert front.refused(PATH, **ASKED, tool_choice=unknown).param == "tool_choice.tools"


def test_a_format_given_twice_is_refused_under_both_names() -> None:
    with fronted_saying("{}", tool_templates.QWEN) as front:
        given = {"text": {"format": {"type": "json_object"}}, "response_format": {"type": "json_object"}}
        error = front.refused(PATH, **ASKED, **given)
        assert error.param == "response_format" and "text.format" in error.message


def test_without_parallel_calls_there_is_one() -> None:
    with fronted_saying(f"{CALL}\n{CALL}", tool_templates.QWEN) as front:
        answer = whole(front, **ASKED, parallel_tool_calls=False)
        assert [described(item) for item in answer["output"]] == [("function_call", ARGUMENTS)]


def test_no_choice_describes_no_tools_and_reads_no_calls() -> None:
    with fronted_saying(CALL, tool_templates.QWEN) as front:
        answer = whole(front, **ASKED, tool_choice="none")
        assert [described(item) for item in answer["output"]] == [("message", CALL)] and "count" not in front.prompt


def test_an_answer_that_was_cut_while_it_reasons_is_incomplete() -> None:
    with fronted_saying("<think>\nHm. Hm. Hm. Hm.\n</think>\n\nThree.", tool_templates.QWEN) as front:
        answer = whole(front, input="a", max_output_tokens=8)
        (item,) = answer["output"]
        assert (answer["status"], item["type"], item["status"]) == ("incomplete", "reasoning", "incomplete")


def test_an_answers_own_items_and_results_can_be_sent_back() -> None:
    with fronted_saying(f"<think>\nHm.\n</think>\n\nLet me see.\n{CALL}", tool_templates.QWEN) as front:
        output = whole(front, **ASKED)["output"]
        result = {"type": "function_call_output", "call_id": output[-1]["call_id"], "output": "12 sacks"}
        turns = [{"role": "user", "content": "How many?"}, *output, result]
        response = front.send(PATH, **{**ASKED, "input": turns})
        assert "x-ignored-fields" not in response.headers
        assert (
            "<|im_start|>assistant\n<think>\nHm.\n</think>\n\nLet me see.\n"
            f"{CALL}<|im_end|>\n<|im_start|>user\n<tool_response>\n12 sacks\n</tool_response>"
        ) in front.prompt
        parts = {**result, "output": [{"type": "input_text", "text": "13 sacks"}]}
        front.send(PATH, **{**ASKED, "input": [*turns[:-1], parts]})
        assert "13 sacks" in front.prompt


def test_calls_side_by_side_are_one_turn() -> None:
    with fronted_saying("No.", tool_templates.QWEN) as front:
        calls = [{"type": "function_call", "call_id": i, "name": "count", "arguments": ARGUMENTS} for i in "ab"]
        results = [{"type": "function_call_output", "call_id": i, "output": i} for i in "ab"]
        front.send(PATH, **{**ASKED, "input": [{"role": "user", "content": "c"}, *calls, *results]})
        assert front.prompt.count("<|im_start|>assistant") == 2 and f"{CALL}\n{CALL}" in front.prompt


@pytest.mark.parametrize(
    ("template", "effort", "is_taken", "said"),
    [
        (tool_templates.QWEN, "none", True, "<think>\n\n</think>"),
        (tool_templates.QWEN, "medium", True, ""),
        (tool_templates.QWEN, "low", False, ""),
        (tool_templates.DEEPSEEK_R1, "medium", True, "<think>"),
        (tool_templates.DEEPSEEK_R1, "none", False, ""),
        ("{{ reasoning_effort }}", "high", True, "high"),
    ],
)
def test_an_effort_is_what_the_template_can_ask_for(template: str, effort: str, is_taken: bool, said: str) -> None:
    with fronted_saying("a", template) as front:
        body = {"input": "a", "reasoning": {"effort": effort}}
        if is_taken:
            assert front.send(PATH, **body).json()["reasoning"]["effort"] == effort
            assert said in front.prompt
        else:
            assert front.refused(PATH, **body).param == "reasoning.effort"


def test_a_template_without_calls_can_be_forced_but_is_not_left_free() -> None:
    with fronted() as front:
        error = front.refused(PATH, **ASKED)
        assert error.param == "tools" and "tool_choice" in error.message
