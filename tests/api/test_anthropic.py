"""What /v1/messages answers: Anthropic's shape, for text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from server.errors import NumericalError
from server.protocol import Tokens
from tests.api.openai.fronts import MAX_MODEL_LEN, TEXT, Front, fronted
from tests.api.scripted import TOKENIZER, says

PATH = "/v1/messages"
HELLO = {"max_tokens": 40, "messages": [{"role": "user", "content": "Hello"}]}
NUM_TOKENS = len(TOKENIZER.encode(TEXT).ids) + 1


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with fronted() as front:
        yield front


def stream(front: Front, **body: Any) -> list[dict[str, Any]]:
    events = []
    for event in front.send(PATH, stream=True, **body).text.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def test_a_conversation_is_answered_with_all_counts(front: Front) -> None:
    answer = front.send(PATH, model="tiny", **HELLO).json()
    assert answer.pop("id").startswith("msg_")
    assert answer == {
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [{"type": "text", "text": TEXT}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": len(front.command.prompt_ids) - 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 3,
            "output_tokens": NUM_TOKENS,
        },
    }


def test_the_system_text_comes_first_and_blocks_are_texts(front: Front) -> None:
    blocks = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]
    turns = [
        {"role": "user", "content": blocks},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
    ]
    front.send(PATH, max_tokens=5, system=blocks, messages=turns)
    said = "Be brief.\nBe kind."
    roles = [f"system\n{said}", f"user\n{said}", "assistant\na", "user\nb"]
    wanted = "".join(f"<|im_start|>{role}<|im_end|>\n" for role in roles)
    assert front.prompt == wanted + "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("body", "reason", "sequence"),
    [
        ({"max_tokens": 2}, "max_tokens", None),
        ({"stop_sequences": ["zzz", " runs"]}, "stop_sequence", " runs"),
        ({}, "end_turn", None),
    ],
)
def test_how_it_ended_is_told_in_answer_and_stream(front: Front, body: Any, reason: str, sequence: Any) -> None:
    answer = front.send(PATH, **{**HELLO, **body}).json()
    assert (answer["stop_reason"], answer["stop_sequence"]) == (reason, sequence)
    assert stream(front, **{**HELLO, **body})[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def test_a_stream_begins_with_the_first_token_and_ends_once(front: Front) -> None:
    events = stream(front, **HELLO)
    deltas = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(deltas) == TEXT and len(deltas) > 3
    names = [event["type"] for event in events]
    assert names[:3] == ["message_start", "content_block_start", "content_block_delta"]
    assert names[2 + len(deltas) :] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[0]["message"]["content"] == [] and events[0]["message"]["usage"]["cache_read_input_tokens"] == 3
    assert events[-2]["usage"]["output_tokens"] == NUM_TOKENS


def test_a_failure_in_the_stream_is_an_error_event_and_the_last() -> None:
    def script(command):
        yield Tokens(command.request_id, TOKENIZER.encode("The").ids)
        yield NumericalError("Not finite.")

    with fronted(script) as front:
        last = stream(front, **HELLO)[-1]
        assert last["type"] == "error" and last["error"]["message"] == "Not finite."


def test_the_tokens_of_a_conversation_are_counted_without_answering_it(front: Front) -> None:
    front.send(PATH, system="Be brief.", **HELLO)
    num_tokens, num_commands = len(front.command.prompt_ids), len(front.worker.commands)
    body = {"messages": HELLO["messages"], "system": "Be brief."}
    assert front.send(f"{PATH}/count_tokens", **body).json() == {"input_tokens": num_tokens}
    assert len(front.worker.commands) == num_commands


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": MAX_MODEL_LEN}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content.0.type"),
        ({"tools": [{"name": "a"}]}, "tools.0.input_schema"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "auto", "name": "f"}}, "tool_choice.name"),
        ({"mcp_servers": [{"name": "a"}]}, "mcp_servers"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages.0.content.0.tool_use_id"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages.0.content.0.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking.type"),
        ({"output_config": {"effort": "high"}}, "output_config.effort"),
        ({"stop_sequences": ["a"], "stop": ["b"]}, "stop_sequences"),
        ({"stop_sequences": [str(i) for i in range(20)]}, "stop_sequences"),
        ({"n": 2}, "n"),
    ],
)
def test_what_cannot_be_is_refused_by_name(front: Front, body: dict[str, Any], param: str) -> None:
    assert front.refused(PATH, **{**HELLO, **body}).param == param


def test_a_sign_of_life_may_be_a_ping() -> None:
    with fronted(says(TEXT, pause_s=0.2), keep_alive="chunk", keep_alive_s=0.02) as front:
        assert "event: ping" in front.send(PATH, stream=True, **HELLO).text
