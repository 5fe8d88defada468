"""Tool calls in the format of each family: free and forced, streamed and whole, alone or several, in the history."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.text.turns.formats import HERMES, LLAMA, MISTRAL, XML, call_format_of
from tests.api.openai import tool_templates
from tests.api.openai.fronts import CHAT, HELLO
from tests.api.openai.special_marks import fronted_saying
from tests.api.openai.test_tools import ARGUMENTS, STOP, calls_of, streamed
from tests.sandbox.chat_templates import CHATML, GEMMA, LLAMA_3, QWEN_3

CALL = '{"name": "count", "arguments": {"sacks": 3}}'
FAMILIES: dict[str, tuple[str, tuple[str, ...], str, str]] = {
    "hermes": (tool_templates.QWEN, (), f"<tool_call>\n{CALL}\n</tool_call>", "\n"),
    "hermes with special marks": (
        tool_templates.QWEN,
        ("<tool_call>", "</tool_call>"),
        f"<tool_call>\n{CALL}\n</tool_call>",
        "\n",
    ),
    "qwen coder": (
        tool_templates.QWEN_CODER,
        ("<tool_call>", "</tool_call>"),
        "<tool_call>\n<function=count>\n<parameter=sacks>\n3\n</parameter>\n</function>\n</tool_call>",
        "\n",
    ),
    "llama": (tool_templates.LLAMA, ("<|python_tag|>",), CALL.replace("arguments", "parameters"), "; "),
    "llama with its tag": (
        tool_templates.LLAMA,
        ("<|python_tag|>",),
        "<|python_tag|>" + CALL.replace("arguments", "parameters"),
        ";",
    ),
    "mistral": (tool_templates.MISTRAL, ("[TOOL_CALLS]",), f"[TOOL_CALLS] [{CALL}]", ""),
    "mistral's newer": (
        tool_templates.MISTRAL_ARGS,
        ("[TOOL_CALLS]", "[ARGS]"),
        '[TOOL_CALLS]count[ARGS]{"sacks": 3}',
        "",
    ),
}
# What the schema of COUNT names by reference, Qwen3-Coder's format has to read from the schema itself.
PLAIN_COUNT = {
    "type": "function",
    "function": {"name": "count", "parameters": {"type": "object", "properties": {"sacks": {"type": "integer"}}}},
}


@pytest.mark.parametrize(
    ("template", "format_"),
    [
        (tool_templates.QWEN, HERMES),
        (tool_templates.QWEN_CODER, XML),
        (tool_templates.LLAMA, LLAMA),
        (tool_templates.MISTRAL, MISTRAL),
        (tool_templates.MISTRAL_ARGS, MISTRAL),
        (tool_templates.DEEPSEEK_R1, None),
        *((template, None) for template in (CHATML, GEMMA, LLAMA_3, QWEN_3)),
    ],
)
def test_a_template_tells_the_format_of_its_models_calls(template: str, format_: Any) -> None:
    assert call_format_of(template) is format_


@pytest.mark.parametrize("family", FAMILIES)
def test_free_calls_are_found_whole_and_streamed_one_and_several(family: str) -> None:
    template, special, call, between = FAMILIES[family]
    for count in (1, 2):
        with fronted_saying(between.join([call] * count), template, special) as front:
            asked = {"tools": [PLAIN_COUNT, STOP], "max_tokens": 300, **HELLO}
            answer = front.post(CHAT, **asked)
            assert calls_of(answer) == [("count", {"sacks": 3})] * count
            assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (None, "tool_calls")
            assert streamed(front.stream(CHAT, **asked)) == ("", [("count", ARGUMENTS)] * count, "tool_calls")
            alone = front.post(CHAT, parallel_tool_calls=False, **asked)
            assert calls_of(alone) == [("count", {"sacks": 3})] and alone.choices[0].finish_reason == "tool_calls"
            assert alone.choices[0].stop_reason is None
            assert len(streamed(front.stream(CHAT, parallel_tool_calls=False, **asked))[1]) == 1


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "llama"])
def test_words_before_calls_stay_before_them_in_every_format(family: str) -> None:
    template, special, call, _ = FAMILIES[family]
    with fronted_saying(f"Let me see.\n{call}", template, special) as front:
        answer = front.post(CHAT, tools=[PLAIN_COUNT], max_tokens=300, **HELLO)
        assert answer.choices[0].message.content == "Let me see." and len(calls_of(answer)) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_result_goes_back_into_the_prompt_in_the_models_own_format(family: str) -> None:
    template, special, call, _ = FAMILIES[family]
    with fronted_saying(call, template, special) as front:
        tools = [PLAIN_COUNT]
        (choice,) = front.post(CHAT, tools=tools, max_tokens=300, **HELLO).choices
        (made,) = choice.message.tool_calls
        said = {"id": made.id, "type": "function", "function": {"name": "count", "arguments": ARGUMENTS}}
        # An id of another server's is taken too.
        for id_ in (made.id, "call_of_another_server"):
            turn = {"role": "assistant", "content": None, "tool_calls": [{**said, "id": id_}]}
            result = {"role": "tool", "tool_call_id": id_, "content": "3"}
            front.post(CHAT, tools=tools, messages=[*HELLO["messages"], turn, result], max_tokens=300)
            # Marks that are special tokens to the tokenizer are written with spaces around them.
            prompt = front.prompt.replace(" ", "")
            assert '"sacks":3' in prompt or "<parameter=sacks>\n3\n" in prompt


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "count"}}])
def test_a_call_can_be_forced_whatever_the_models_own_format(family: str, choice: Any) -> None:
    template, special, _, _ = FAMILIES[family]
    with fronted_saying(ARGUMENTS, template, special) as front:
        answer = front.post(CHAT, tools=[PLAIN_COUNT], tool_choice=choice, **HELLO)
        assert calls_of(answer) == [("count", {"sacks": 3})] and answer.choices[0].finish_reason == "tool_calls"
        if "mistral" in family:
            assert len(answer.choices[0].message.tool_calls[0].id) == 9


def test_a_tool_that_an_argument_mentions_with_its_marks_is_called_once() -> None:
    arguments = {"note": 'Close with </tool_call>, then <tool_call>{"name": "count"}</tool_call>.'}
    text = f"<tool_call>\n{json.dumps({'name': 'count', 'arguments': arguments})}\n</tool_call>"
    for special in ((), ("<tool_call>", "</tool_call>")):
        with fronted_saying(text, tool_templates.QWEN, special) as front:
            for asked in ({}, {"parallel_tool_calls": False}):
                answer = front.post(CHAT, tools=[PLAIN_COUNT], max_tokens=300, **asked, **HELLO)
                assert calls_of(answer) == [("count", arguments)]
                assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_stop_string_within_arguments_ends_the_answer_without_a_whole_call(choice: str) -> None:
    text = f"<tool_call>\n{CALL}\n</tool_call>" if choice == "auto" else ARGUMENTS
    with fronted_saying(text, tool_templates.QWEN) as front:
        asked = {"tools": [PLAIN_COUNT], "tool_choice": choice, "stop": ['": 3'], "max_tokens": 300, **HELLO}
        (whole,) = front.post(CHAT, **asked).choices
        assert (whole.finish_reason, whole.stop_reason) == ("stop", '": 3')
        assert streamed(front.stream(CHAT, **asked))[2] == "stop"


TEXT = (
    "Fine 😀 it runs.\n<tool_call>\n" + CALL + "\n</tool_call>\nAnd <tool_call> again 磨\n<tool_call>" + CALL
    + "</tool_call> Done, 😀 it stops"
)  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), max_size=60),
    has_special=st.booleans(),
    stop=st.sampled_from([[], [" it runs well"], ["\n\n", "Done"], [" it stops!"], ["</tool_call> x"]]),
    banned=st.sampled_from([[], [" it stops now"], [" it runs slowly"]]),
)
def test_any_split_into_steps_gives_the_parts_of_the_whole_in_order(
    sizes: list[int], has_special: bool, stop: list[str], banned: list[str]
) -> None:
    special = ("<tool_call>", "</tool_call>") if has_special else ()
    asked: dict[str, Any] = {"tools": [PLAIN_COUNT], "max_tokens": 400, **HELLO}
    asked |= {"stop": stop} if stop else {}
    asked |= {"banned_phrases": banned} if banned else {}
    with fronted_saying(TEXT, tool_templates.QWEN, special, sizes) as front:
        last = "" if "Done" in stop else "Done, 😀 it stops"
        expected = ["Fine 😀 it runs.", "count", "\nAnd <tool_call> again 磨", "count", *([f" {last}"] if last else [])]
        assert in_order(front.stream(CHAT, **asked)) == expected
        (choice,) = front.post(CHAT, **asked).choices
        assert choice.message.content == "".join(part for part in expected if part != "count")
        assert [call.function.arguments for call in choice.message.tool_calls] == [ARGUMENTS] * 2


def in_order(chunks: list[Any]) -> list[str]:
    """The texts of a stream, and between them the names of the calls."""
    found: list[str] = []
    is_text = False
    for chunk in chunks:
        delta = chunk.choices[0].delta
        assert not (delta.content and delta.tool_calls)
        if delta.content:
            found[-1:] = [found[-1] + delta.content] if is_text else [*found[-1:], delta.content]
            is_text = True
        for call in delta.tool_calls or []:
            found.append(call.function.name)
            is_text = False
    return found
