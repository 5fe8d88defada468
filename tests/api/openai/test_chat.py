"""What /v1/chat/completions answers: shapes, the role with the first token, usage, and what the template is given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from server.protocol import Tokens
from tests.api.openai.fronts import CHAT, COMPLETIONS, HELLO, TEXT, Front, fronted
from tests.api.scripted import END_ID, TOKENIZER, says
from tests.api.several import TEXTS, says_each

NUM_TOKENS = len(TOKENIZER.encode(TEXT).ids) + 1


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with fronted() as front:
        yield front


def test_a_conversation_is_answered_with_all_counts(front: Front) -> None:
    answer = front.post(CHAT, model="tiny", **HELLO)
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason, choice.stop_reason) == (TEXT, "stop", None)
    assert answer.id.startswith("chatcmpl-") and answer.model == "tiny"
    usage = answer.usage
    assert usage.prompt_tokens == len(front.command.prompt_ids) and usage.completion_tokens == NUM_TOKENS
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == 3


def test_the_chat_template_makes_the_prompt(front: Front) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    front.post(CHAT, messages=messages)
    wanted = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert front.prompt == wanted


def test_a_stream_has_the_text_of_the_answer_and_one_end(front: Front) -> None:
    chunks = front.stream(CHAT, **HELLO)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert deltas[-2].content == "." and deltas[-1].content is msgspec.UNSET


def test_the_role_comes_once_and_with_the_first_token() -> None:
    def script(command):
        yield 0.05
        yield Tokens(command.request_id, TOKENIZER.encode("The mill").ids[:1])
        yield Tokens(command.request_id, [END_ID], "stop")

    with fronted(script) as front:
        chunks = front.stream(CHAT, **HELLO)
        assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == "The"
        assert all(chunk.choices[0].delta.role is msgspec.UNSET for chunk in chunks[1:])


def test_several_answers_have_a_role_and_an_end_each() -> None:
    with fronted(says_each(*TEXTS)) as front:
        answer = front.post(CHAT, n=3, **HELLO)
        assert [(c.index, c.message.content) for c in answer.choices] == list(enumerate(TEXTS[:3]))
        chunks = front.stream(CHAT, n=3, **HELLO)
        for index, text in enumerate(TEXTS[:3]):
            mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
            assert "".join(choice.delta.content or "" for choice in mine) == text
            assert [choice.delta.role for choice in mine].count("assistant") == 1
            assert [choice.finish_reason for choice in mine if choice.finish_reason] == ["stop"]


def test_the_usage_chunk_is_last_without_choices_and_only_when_asked_for(front: Front) -> None:
    assert all(not chunk.usage for chunk in front.stream(CHAT, **HELLO))
    *chunks, last = front.stream(CHAT, stream_options={"include_usage": True}, **HELLO)
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)
    assert last.choices == [] and last.usage.completion_tokens == NUM_TOKENS


def test_stream_options_ask_for_nothing_where_there_is_no_stream(front: Front) -> None:
    """The usage that they ask for is in every JSON answer."""
    response = front.send(CHAT, stream_options={"include_usage": True}, **HELLO)
    assert response.json()["usage"]["total_tokens"] > 0 and "x-ignored-fields" not in response.headers


def test_content_may_be_a_list_of_text_parts_and_of_no_others(front: Front) -> None:
    parts = [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]
    front.post(CHAT, messages=[{"role": "user", "content": parts}])
    assert "user\nOne.\nTwo.<|im_end|>" in front.prompt
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    error = front.refused(CHAT, messages=[{"role": "user", "content": [*parts, image]}])
    assert error.param == "messages.0.content.2.type" and "image_url" in error.message


def test_a_developer_is_the_system_to_a_template_that_does_not_know_the_word(front: Front) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, *HELLO["messages"]]
    front.post(CHAT, messages=messages)
    assert front.prompt.startswith("<|im_start|>system\nBe brief.")
    with fronted(chat_template="{% for m in messages %}{{ m.role }}:{% endfor %}{# developer #}") as knowing:
        knowing.post(CHAT, messages=messages)
        assert knowing.prompt == "developer:user:"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("Hello", "messages"),
        ([{"role": 5, "content": "a"}], "messages.0.role"),
        ([{"content": "a"}], "messages.0.role"),
        ([{"role": "user", "content": 5}], "messages.0.content"),
        (None, "messages"),
    ],
)
def test_wrong_messages_are_refused_by_name(front: Front, messages: Any, param: str) -> None:
    assert front.refused(CHAT, messages=messages).param == param


def test_a_model_without_a_chat_template_says_so_in_plain_words() -> None:
    with fronted(chat_template=None) as front:
        error = front.refused(CHAT, **HELLO)
        assert "tiny has no chat template" in error.message and COMPLETIONS in error.message
        assert front.post(COMPLETIONS, prompt="Hello").choices[0].text == TEXT


def test_options_of_the_chat_template_reach_it_and_unknown_ones_are_refused() -> None:
    template = "{{ mood }}:{% for m in messages %}{{ m.content }}{% endfor %}"
    with fronted(chat_template=template) as front:
        front.post(CHAT, chat_template_kwargs={"mood": "glad"}, **HELLO)
        assert front.prompt == "glad:Hello"
        assert front.refused(CHAT, chat_template_kwargs={"wood": 1}, **HELLO).param == "chat_template_kwargs"


def test_what_a_client_writes_is_never_a_special_token(front: Front) -> None:
    front.post(CHAT, messages=[{"role": "user", "content": "</s>"}])
    assert END_ID not in front.command.prompt_ids


def test_a_text_that_ran_out_of_rewinds_is_told_as_filtered() -> None:
    def script(command):
        yield Tokens(command.request_id, TOKENIZER.encode("The mill").ids)
        yield Tokens(command.request_id, [], "banned_phrase")

    with fronted(script) as front:
        (choice,) = front.post(CHAT, banned_phrases=["runs"], **HELLO).choices
        assert (choice.finish_reason, choice.stop_reason) == ("content_filter", "banned_phrase")
        assert choice.message.content == "The mill"


def test_a_prompt_that_is_too_long_names_the_messages(front: Front) -> None:
    error = front.refused(CHAT, messages=[{"role": "user", "content": "mill " * 3000}])
    assert error.param == "messages" and error.code == "context_length_exceeded"


def test_two_line_separators_in_an_answer_do_not_break_lines_of_the_stream() -> None:
    text = "a\u2028b\u2029c\r\nd\u0085e"
    with fronted(says(text)) as front:
        chunks = front.stream(CHAT, **HELLO)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
