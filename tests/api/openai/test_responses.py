"""What /v1/responses answers: OpenAI's newer shape. Tools and reasoning have tests of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from server.errors import NumericalError
from server.protocol import Tokens
from server.serving.structured import grammar_text
from tests.api.openai.fronts import MAX_MODEL_LEN, TEXT, Front, fronted
from tests.api.scripted import TOKENIZER

PATH = "/v1/responses"
NUM_TOKENS = len(TOKENIZER.encode(TEXT).ids) + 1
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FIELDS = {
    "id", "object", "created_at", "status", "error", "incomplete_details", "instructions", "max_output_tokens",
    "metadata", "model", "output", "parallel_tool_calls", "previous_response_id", "reasoning", "store", "temperature",
    "text", "tool_choice", "tools", "top_p", "truncation", "usage",
}  # fmt: skip


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with fronted() as front:
        yield front


def stream(front: Front, **body: Any) -> list[dict[str, Any]]:
    """The events, each named as its type and numbered."""
    text = front.send(PATH, stream=True, **body).text
    events = []
    for number, event in enumerate(text.removesuffix("\n\n").split("\n\n")):
        name, data = event.split("\n")
        parsed = json.loads(data.removeprefix("data: "))
        assert name == f"event: {parsed['type']}" and parsed["sequence_number"] == number
        events.append(parsed)
    return events


def test_a_text_is_answered_with_all_counts(front: Front) -> None:
    answer = front.send(PATH, input="Hello", metadata={"a": "b"}).json()
    assert set(answer) == FIELDS
    assert (answer["status"], answer["incomplete_details"], answer["metadata"]) == ("completed", None, {"a": "b"})
    (item,) = answer["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}]
    num_prompt = len(front.command.prompt_ids)
    assert answer["usage"] == {
        "input_tokens": num_prompt,
        "input_tokens_details": {"cached_tokens": 3},
        "output_tokens": NUM_TOKENS,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": num_prompt + NUM_TOKENS,
    }
    assert answer["store"] is False and answer["temperature"] == 1.0


def test_instructions_and_a_conversation_become_the_prompt(front: Front) -> None:
    turns = [
        {"role": "user", "content": "One"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Two"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Three"}]},
    ]
    front.send(PATH, input=turns, instructions="Be brief.")
    roles = ["system\nBe brief.", "user\nOne", "assistant\nTwo", "user\nThree"]
    wanted = "".join(f"<|im_start|>{role}<|im_end|>\n" for role in roles)
    assert front.prompt == wanted + "<|im_start|>assistant\n"


def test_an_answer_that_was_cut_is_incomplete_and_says_why(front: Front) -> None:
    answer = front.send(PATH, input="Hello", max_output_tokens=2).json()
    assert answer["status"] == answer["output"][0]["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"} and answer["max_output_tokens"] == 2
    assert stream(front, input="Hello", max_output_tokens=2)[-1]["type"] == "response.incomplete"


def test_a_stream_tells_the_text_in_parts_and_then_all(front: Front) -> None:
    events = stream(front, input="Hello")
    assert [event["type"] for event in events[:4]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == TEXT and len(deltas) > 3
    assert [event["type"] for event in events[4 + len(deltas) :]] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[-4]["text"] == TEXT
    whole, begun = events[-1]["response"], events[0]["response"]
    assert set(whole) == set(begun) == FIELDS and whole["output"][0]["content"][0]["text"] == TEXT
    assert (begun["status"], begun["usage"], begun["output"]) == ("in_progress", None, [])
    assert (begun["id"], begun["created_at"]) == (whole["id"], whole["created_at"])
    ids = {event["item_id"] for event in events if "item_id" in event} | {
        event["item"]["id"] for event in events if "item" in event
    }
    assert ids == {whole["output"][0]["id"]}


def test_a_stop_string_ends_the_text_before_it(front: Front) -> None:
    answer = front.send(PATH, input="Hello", stop=" runs").json()
    assert (answer["status"], answer["output"][0]["content"][0]["text"]) == ("completed", "The mill 你好 😀")


def test_a_format_of_the_text_is_a_grammar(front: Front) -> None:
    format_ = {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}
    answer = front.send(PATH, input="Hello", text={"format": format_}).json()
    assert front.command.params.grammar == grammar_text({"type": "json", "value": SCHEMA})
    assert answer["text"]["format"]["schema"] == SCHEMA
    front.send(PATH, input="Hello", text={"format": {"type": "text"}})
    assert front.command.params.grammar is None


def test_a_failure_in_the_stream_is_an_error_event_and_the_last() -> None:
    def script(command):
        yield Tokens(command.request_id, TOKENIZER.encode("The").ids)
        yield NumericalError("Not finite.")

    with fronted(script) as front:
        last = stream(front, input="Hello")[-1]
        assert last["type"] == "error" and last["error"]["code"] == "numerical_error"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({}, "input"),
        ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "a", "store": True}, "store"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"input": "a", "max_output_tokens": MAX_MODEL_LEN}, "max_output_tokens"),
        ({"input": "a", "max_output_tokens": 5, "max_tokens": 6}, "max_tokens"),
        ({"input": "a", "n": 2}, "n"),
        ({"input": [{"type": "function_call_output", "role": "user", "content": "a"}]}, "input.0.call_id"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input.0.call_id"),
        ({"input": [{"type": "computer_call", "call_id": "a"}]}, "input.0.type"),
        ({"input": [{"content": "a"}]}, "input.0.role"),
        ({"input": "a", "max_tool_calls": 2}, "max_tool_calls"),
        ({"input": "a", "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"input": "a", "tool_choice": "required"}, "tool_choice"),
        ({"input": "a", "include": ["message.output_text.logprobs"]}, "include"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.type"),
        ({"input": "a", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": "a", "text": {"verbosity": "low"}}, "text.verbosity"),
        ({"input": "a", "reasoning": {"effort": "low"}}, "reasoning.effort"),
    ],
)
def test_what_cannot_be_is_refused_by_name(front: Front, body: dict[str, Any], param: str) -> None:
    assert front.refused(PATH, **body).param == param


def test_nulls_within_what_is_refused_ask_for_nothing(front: Front) -> None:
    body = {"reasoning": {"effort": None, "summary": None}, "text": {"verbosity": "medium"}}
    response = front.send(PATH, input="a", **body)
    assert response.status_code == 200 and "x-ignored-fields" not in response.headers


def test_a_model_without_a_chat_template_says_so() -> None:
    with fronted(chat_template=None) as front:
        assert "no chat template" in front.refused(PATH, input="a").message
