"""Reasoning stands apart from the answer, where the chat template's model reasons."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.api.openai import tool_templates
from tests.api.openai.fronts import CHAT, HELLO, fronted
from tests.api.openai.special_marks import fronted_saying
from tests.api.openai.test_tools import ARGUMENTS, COUNT, calls_of, streamed
from tests.api.scripted import TOKENIZER, says

THOUGHT = "Two mills.\n\nOr three?"
SAID = f"<think>\n{THOUGHT}\n</think>\n\nThree."
CALL = '<tool_call>\n{"name": "count", "arguments": {"sacks": 3}}\n</tool_call>'


def reasoning_of(chunks: list[Any]) -> str:
    """All of it, and none after the content has begun."""
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    last = max((i for i, delta in enumerate(deltas) if delta.reasoning_content), default=-1)
    assert not any(delta.content or delta.tool_calls for delta in deltas[: last + 1])
    return "".join(delta.reasoning_content or "" for delta in deltas)


@pytest.mark.parametrize(
    ("template", "text", "special"),
    [
        (tool_templates.QWEN, SAID, ()),
        (tool_templates.QWEN, SAID, ("<think>", "</think>")),
        (tool_templates.DEEPSEEK_R1, SAID.removeprefix("<think>\n"), ()),
        (tool_templates.DEEPSEEK_R1, SAID, ()),
        ("[THINK][/THINK]" + tool_templates.MISTRAL, f"[THINK]{THOUGHT}[/THINK]Three.", ("[THINK]", "[/THINK]")),
    ],
)
def test_reasoning_is_told_apart_from_the_answer_whole_and_streamed(template: str, text: str, special: Any) -> None:
    with fronted_saying(text, template, special) as front:
        answer = front.post(CHAT, max_tokens=200, **HELLO)
        message = answer.choices[0].message
        assert (message.reasoning_content, message.content) == (THOUGHT, "Three.")
        assert 0 < answer.usage.completion_tokens_details.reasoning_tokens < answer.usage.completion_tokens
        chunks = front.stream(CHAT, max_tokens=200, stream_options={"include_usage": True}, **HELLO)
        assert reasoning_of(chunks) == THOUGHT
        assert streamed([chunk for chunk in chunks if chunk.choices]) == ("Three.", [], "stop")
        assert chunks[-1].usage == answer.usage


def test_an_answer_that_ends_while_it_reasons_has_no_content() -> None:
    with fronted_saying(SAID, tool_templates.QWEN) as front:
        for asked in ({"max_tokens": 6}, {"max_tokens": 200, "stop": "three?"}):
            (choice,) = front.post(CHAT, **asked, **HELLO).choices
            assert choice.message.content == "" and THOUGHT.startswith(choice.message.reasoning_content)


def test_a_model_that_was_asked_not_to_reason_answers_at_once() -> None:
    with fronted_saying("Three.", tool_templates.QWEN) as front:
        answer = front.post(CHAT, chat_template_kwargs={"enable_thinking": False}, **HELLO)
        message = answer.choices[0].message
        assert (message.content, message.reasoning_content) == ("Three.", msgspec.UNSET)
        assert answer.usage.completion_tokens_details.reasoning_tokens == 0


def test_reasoning_can_be_left_out_or_left_in_the_content() -> None:
    with fronted_saying(SAID, tool_templates.QWEN) as front:
        for asked, content in (({"include_reasoning": False}, "Three."), ({"reasoning_format": "none"}, SAID)):
            answer = front.post(CHAT, max_tokens=200, **asked, **HELLO)
            message = answer.choices[0].message
            assert (message.content, message.reasoning_content) == (content, msgspec.UNSET)
            chunks = front.stream(CHAT, max_tokens=200, **asked, **HELLO)
            assert (streamed(chunks)[0], reasoning_of(chunks)) == (content, "")
        assert front.refused(CHAT, reasoning_format="hidden", **HELLO).param == "reasoning_format"


@pytest.mark.parametrize(
    ("begun", "said", "reasoning", "content"),
    [
        ("<think>\nTwo,", " or three.\n</think>\n\nThree.", "or three.", "Three."),
        ("<think>\nTwo.\n</think>\n\nThe answer", " is <think>", msgspec.UNSET, " is <think>"),
        ("The answer:", "<think>a</think>", msgspec.UNSET, "<think>a</think>"),
    ],
)
def test_an_answer_that_is_continued_goes_on_with_its_reasoning_or_its_content(
    begun: str, said: str, reasoning: Any, content: str
) -> None:
    with fronted_saying(said, tool_templates.QWEN) as front:
        turns = [*HELLO["messages"], {"role": "assistant", "content": begun}]
        asked = {"messages": turns, "continue_final_message": True, "add_generation_prompt": False}
        message = front.post(CHAT, max_tokens=100, **asked).choices[0].message
        assert (message.reasoning_content, message.content) == (reasoning, content)


def test_calls_come_after_reasoning_and_none_are_looked_for_within_it() -> None:
    with fronted_saying(f"<think>\nI could use {CALL}\n</think>\n\n{CALL}", tool_templates.QWEN) as front:
        answer = front.post(CHAT, tools=[COUNT], max_tokens=300, **HELLO)
        assert calls_of(answer) == [("count", {"sacks": 3})]
        assert answer.choices[0].message.reasoning_content == f"I could use {CALL}"
        chunks = front.stream(CHAT, tools=[COUNT], max_tokens=300, **HELLO)
        assert streamed(chunks) == ("", [("count", ARGUMENTS)], "tool_calls")
        assert reasoning_of(chunks) == f"I could use {CALL}"
        single = front.post(CHAT, tools=[COUNT], parallel_tool_calls=False, max_tokens=300, **HELLO)
        assert single.choices[0].message.reasoning_content == f"I could use {CALL}"


def test_an_answer_with_a_structure_is_all_content_also_where_the_template_opens_reasoning() -> None:
    with fronted_saying('{"a": 1}', tool_templates.DEEPSEEK_R1) as front:
        answer = front.post(CHAT, response_format={"type": "json_object"}, **HELLO)
        assert answer.choices[0].message.content == '{"a": 1}'


def test_a_template_that_does_not_reason_leaves_marks_in_the_content() -> None:
    with fronted(says("<think>a</think>b")) as front:
        answer = front.post(CHAT, max_tokens=50, **HELLO)
        assert answer.choices[0].message.content == "<think>a</think>b"
        assert answer.usage.completion_tokens_details is msgspec.UNSET


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_of_the_history_reaches_the_template(field: str) -> None:
    with fronted_saying("b", tool_templates.QWEN) as front:
        turn = {"role": "assistant", "content": "a", field: THOUGHT}
        front.post(CHAT, messages=[*HELLO["messages"], turn, *HELLO["messages"]])
        assert f"<think>\n{THOUGHT}\n</think>\n\na" in front.prompt


def test_every_token_up_to_the_end_mark_counts_as_reasoning() -> None:
    with fronted_saying("<think>a b</think>c d", tool_templates.QWEN) as front:
        answer = front.post(CHAT, max_tokens=50, **HELLO)
        marked = len(TOKENIZER.encode("<think>a b</think>").ids)
        assert abs(answer.usage.completion_tokens_details.reasoning_tokens - marked) <= 1
