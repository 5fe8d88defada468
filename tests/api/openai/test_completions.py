"""What /v1/completions answers: shapes, texts, order of choices, counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.protocol import Generate, Tokens
from tests.api.openai.fronts import COMPLETIONS, TEXT, Front, fronted
from tests.api.scripted import END_ID, TOKENIZER, Step, says
from tests.api.several import TEXTS, says_each

NUM_TOKENS = len(TOKENIZER.encode(TEXT).ids) + 1
"""With the end token."""


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with fronted() as front:
        yield front


def echoes(command: Generate) -> Iterator[Step]:
    """Says the prompt again, a token at a time: short prompts end first."""
    for token_id in command.prompt_ids:
        yield Tokens(command.request_id, [token_id])
        yield 0.001
    yield Tokens(command.request_id, [END_ID], "stop")


def test_a_text_is_answered_with_all_counts(front: Front) -> None:
    answer = front.post(COMPLETIONS, model="tiny", prompt="Hello")
    num_prompt = len(TOKENIZER.encode("Hello").ids)
    assert answer.model == "tiny" and answer.id.startswith("cmpl-")
    assert [(c.index, c.text, c.finish_reason, c.stop_reason) for c in answer.choices] == [(0, TEXT, "stop", None)]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (num_prompt, NUM_TOKENS)
    assert answer.usage.total_tokens == num_prompt + NUM_TOKENS
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


def test_a_stream_has_the_text_of_the_answer_and_one_end(front: Front) -> None:
    chunks = front.stream(COMPLETIONS, prompt="Hello")
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (NUM_TOKENS - 1) + ["stop"]


def test_the_greatest_length_is_the_finish_reason(front: Front) -> None:
    answer = front.post(COMPLETIONS, prompt="Hello", max_tokens=3)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 3


@pytest.mark.parametrize("stop", [" runs", ["zzz", " runs"]])
def test_a_stop_string_ends_the_text_before_it_and_is_told(front: Front, stop: Any) -> None:
    (choice,) = front.post(COMPLETIONS, prompt="Hello", stop=stop).choices
    assert (choice.text, choice.finish_reason, choice.stop_reason) == ("The mill 你好 😀", "stop", " runs")
    chunks = front.stream(COMPLETIONS, prompt="Hello", stop=stop)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "The mill 你好 😀"
    assert chunks[-1].choices[0].stop_reason == " runs"


def test_a_prompt_is_a_text_a_list_ids_or_a_list_of_these() -> None:
    texts = ["The river", "mill", "The miller counts the sacks"]
    ids = [TOKENIZER.encode(text).ids for text in texts]
    with fronted(echoes) as front:
        for prompt, wanted in ((texts[0], texts[:1]), (texts, texts), (ids[0], texts[:1]), (ids, texts)):
            answer = front.post(COMPLETIONS, prompt=prompt)
            assert [choice.text for choice in answer.choices] == wanted
            assert [choice.index for choice in answer.choices] == list(range(len(wanted)))
            assert answer.usage.prompt_tokens == sum(len(ids[texts.index(text)]) for text in wanted)
            assert {tuple(command.prompt_ids) for command in front.worker.commands[-len(wanted) :]} == {
                tuple(ids[texts.index(text)]) for text in wanted
            }


def test_several_prompts_stream_side_by_side_each_with_its_own_end() -> None:
    texts = ["The miller counts the sacks", "mill"]
    with fronted(echoes) as front:
        chunks = front.stream(COMPLETIONS, prompt=texts, stream_options={"include_usage": True})
        usage = chunks.pop().usage
        for index, text in enumerate(texts):
            mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
            assert "".join(choice.text for choice in mine) == text
            assert [choice.finish_reason for choice in mine].count("stop") == 1 and mine[-1].finish_reason == "stop"
        assert usage.prompt_tokens == sum(len(TOKENIZER.encode(text).ids) for text in texts)
        assert not front.worker.running
        order = [chunk.choices[0].index for chunk in chunks]
        assert order.index(1) < len(order) - 1 - order[::-1].index(0)


def test_ids_that_the_model_does_not_have_are_refused(front: Front) -> None:
    for prompt in ([1, 10**6], [[1], [-1]]):
        error = front.refused(COMPLETIONS, prompt=prompt)
        assert error.param == "prompt" and "must be a token id" in error.message


@pytest.mark.parametrize("prompt", [[], "", [[]], ["a", 5], 5, {"a": 1}, [True]])
def test_a_prompt_of_another_kind_is_refused_by_name(front: Front, prompt: Any) -> None:
    error = front.refused(COMPLETIONS, prompt=prompt)
    assert error.param == "prompt" and "inputs" not in error.message


def test_choices_are_numbered_by_prompt_and_then_by_sample() -> None:
    with fronted(says_each(*TEXTS)) as front:
        answer = front.post(COMPLETIONS, prompt=["a", "b"], n=2)
        assert [(choice.index, choice.text) for choice in answer.choices] == list(enumerate(TEXTS[:2] * 2))
        chunks = front.stream(COMPLETIONS, prompt=["a", "b"], n=2)
        for index, text in enumerate(TEXTS[:2] * 2):
            mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
            assert "".join(choice.text for choice in mine) == text
            assert [choice.finish_reason for choice in mine if choice.finish_reason] == ["stop"]


def test_best_of_answers_the_best_and_counts_all() -> None:
    with fronted(says_each(*TEXTS, logprobs=[-3.0, -1.0, -2.0, -4.0])) as front:
        answer = front.post(COMPLETIONS, prompt="a", n=2, best_of=4)
        assert [choice.text for choice in answer.choices] == [TEXTS[1], TEXTS[2]]
        assert answer.usage.completion_tokens == sum(len(TOKENIZER.encode(text).ids) + 1 for text in TEXTS)
        error = front.refused(COMPLETIONS, prompt="a", best_of=4, stream=True)
        assert error.param == "best_of"


def test_echo_puts_the_prompt_before_every_choice_streaming_or_not() -> None:
    with fronted(says_each(*TEXTS)) as front:
        for prompt in ("Say: ", TOKENIZER.encode("Say: ").ids):
            answer = front.post(COMPLETIONS, prompt=prompt, n=2, echo=True)
            assert [choice.text for choice in answer.choices] == ["Say: " + text for text in TEXTS[:2]]
            chunks = front.stream(COMPLETIONS, prompt=prompt, n=2, echo=True)
            for index in range(2):
                parts = [chunk.choices[0].text for chunk in chunks if chunk.choices[0].index == index]
                assert "".join(parts) == "Say: " + TEXTS[index]


def test_a_suffix_is_refused_by_name_unless_it_is_empty(front: Front) -> None:
    assert front.refused(COMPLETIONS, prompt="a", suffix=" end").param == "suffix"
    assert front.post(COMPLETIONS, prompt="a", suffix="").choices[0].text == TEXT


def test_the_usage_chunk_is_last_without_choices_and_only_when_asked_for(front: Front) -> None:
    plain = front.stream(COMPLETIONS, prompt="Hello")
    assert all(not chunk.usage for chunk in plain)
    *chunks, last = front.stream(COMPLETIONS, prompt="Hello", stream_options={"include_usage": True})
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)
    assert last.choices == [] and last.usage.completion_tokens == NUM_TOKENS


def test_continuous_usage_counts_with_every_chunk(front: Front) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = front.stream(COMPLETIONS, prompt="Hello", stream_options=options)
    assert [chunk.usage.completion_tokens for chunk in chunks] == list(range(1, NUM_TOKENS + 1))
    assert last.usage == chunks[-1].usage


def test_salt_and_limits_of_the_native_route_hold_here_too() -> None:
    with fronted(says(TEXT), max_batch_inputs=2) as front:
        assert front.refused(COMPLETIONS, 413, prompt=["a"] * 3).param == "prompt"
        front.post(COMPLETIONS, prompt="a", cache_salt="mine")
        assert front.command.cache_salt == "mine"
