"""What clients send out of habit is taken: neutral values, and other ways to say what has a name here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.api.openai.fronts import CHAT, COMPLETIONS, HELLO, MAX_MODEL_LEN, TEXT, Front, fronted, tells
from tests.api.test_options_page import engine_client

BODIES = {COMPLETIONS: {"prompt": "Hello"}, CHAT: HELLO}
BOTH = pytest.mark.parametrize("path", [COMPLETIONS, CHAT])


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with fronted(tells(TEXT)) as front:
        yield front


@pytest.fixture(scope="module")
def engine() -> Iterator[TestClient]:
    with engine_client(default_max_new_tokens=8) as client:
        yield client


@BOTH
def test_seed_minus_one_asks_for_a_random_seed(front: Front, path: str) -> None:
    seeds = set()
    for _ in range(3):
        front.send(path, **BODIES[path], seed=-1)
        seeds.add(front.command.params.seed)
    assert len(seeds) == 3 and min(seeds) >= 0


def test_negative_seeds_are_seeds_of_their_own(front: Front) -> None:
    seeds = []
    for seed in (-2, -3, -(2**63), -2):
        front.send(COMPLETIONS, prompt="a", seed=seed)
        seeds.append(front.command.params.seed)
    assert min(seeds) >= 0 and len(set(seeds)) == 3 and seeds[0] == seeds[3]


def test_several_greedy_outputs_are_the_same(engine: TestClient) -> None:
    answer = engine.post(COMPLETIONS, json={"prompt": "The mill", "n": 3, "temperature": 0}).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert len(texts) == 3 and len(set(texts)) == 1 and texts[0]


def test_top_p_0_takes_the_most_likely_token(engine: TestClient) -> None:
    greedy = engine.post(COMPLETIONS, json={"prompt": "The mill", "temperature": 0}).json()
    for top_k in (0, 5):
        narrow = engine.post(COMPLETIONS, json={"prompt": "The mill", "top_p": 0, "top_k": top_k}).json()
        assert narrow["choices"][0]["text"] == greedy["choices"][0]["text"]


def test_up_to_16_stop_strings_are_taken(front: Front) -> None:
    stop = [f"word{i}" for i in range(15)]
    assert front.post(CHAT, stop=[*stop, "runs"], **HELLO).choices[0].message.content == TEXT.partition("runs")[0]
    assert "at most 16" in front.refused(CHAT, stop=[*stop, "a", "b"], **HELLO).message


@pytest.mark.parametrize("name", ["max_tokens", "max_new_tokens", "max_completion_tokens"])
def test_no_new_tokens_with_echo_score_the_prompt(front: Front, name: str) -> None:
    body = {"prompt": ["The mill", "runs"], "echo": True, "logprobs": 1}
    scored = front.post(COMPLETIONS, **body, **{name: 0})
    grown = front.post(COMPLETIONS, **body, max_tokens=1)
    assert [choice.text for choice in scored.choices] == ["The mill", "runs"]
    for choice, longer in zip(scored.choices, grown.choices, strict=True):
        assert choice.finish_reason == "length" and choice.stop_reason is None
        assert choice.logprobs.token_logprobs == longer.logprobs.token_logprobs[:-1]
    assert scored.usage.completion_tokens == 0 and scored.usage.total_tokens == scored.usage.prompt_tokens


def test_no_new_tokens_are_streamed_as_the_prompt_alone(front: Front) -> None:
    options = {"include_usage": True}
    chunk, last = front.stream(COMPLETIONS, prompt="The mill", echo=True, max_tokens=0, stream_options=options)
    assert (chunk.choices[0].text, chunk.choices[0].finish_reason) == ("The mill", "length")
    assert last.usage.completion_tokens == 0


def test_a_chat_needs_at_least_one_token(front: Front) -> None:
    assert front.refused(CHAT, max_tokens=0, **HELLO).param == "max_tokens"


def test_echo_shows_what_the_model_read_of_a_prompt_that_was_cut(front: Front) -> None:
    answer = front.post(COMPLETIONS, prompt="The old mill runs by the river", echo=True, truncate_prompt_tokens=3)
    assert answer.choices[0].text == front.prompt + TEXT
    assert "The old" not in front.prompt


def test_logprobs_false_asks_for_none_as_in_a_chat(front: Front) -> None:
    assert front.post(COMPLETIONS, prompt="a", logprobs=False).choices[0].logprobs is None


NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "store": False,
    "stop": [],
    "n": 1,
    "best_of": 1,
    "seed": None,
    "stream": False,
    "stream_options": {"include_usage": False},
    "tools": [],
    "tool_choice": "none",
    "parallel_tool_calls": True,
    "reasoning_effort": "none",
    "top_logprobs": 0,
    "logprobs": False,
    "service_tier": "auto",
    "echo": False,
    "prompt_logprobs": None,
    "skip_special_tokens": True,
    "modalities": ["text"],
    "verbosity": "medium",
    "min_p": 0,
    "repetition_penalty": 1,
    "top_k": -1,
    "use_beam_search": False,
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_value_asks_for_nothing(front: Front, name: str) -> None:
    plain = front.send(CHAT, seed=1, **HELLO)
    command = front.command
    said = front.send(CHAT, **{"seed": 1, **HELLO, name: NEUTRAL[name]})
    assert "x-ignored-fields" not in said.headers
    assert said.json()["choices"] == plain.json()["choices"]
    if name not in ("seed", "top_k"):
        assert front.command.params == command.params


@pytest.mark.parametrize("value", [None, True, False, [None, {"a": True}]])
def test_messages_write_values_as_json_does(front: Front, value: Any) -> None:
    for body in ({"temperature": [value]}, {"penalties": [value]}, {"grammar": {"type": value}}):
        message = front.refused(CHAT, **HELLO, **body).message
        assert not any(word in message for word in ("None", "True", "False"))


def test_a_prompt_may_fill_the_context_but_for_one_token(front: Front) -> None:
    prompt = [5] * (MAX_MODEL_LEN - 1)
    assert front.post(COMPLETIONS, prompt=prompt, max_tokens=0).usage.prompt_tokens == MAX_MODEL_LEN - 1


def test_reasoning_effort_none_switches_reasoning_off_where_the_template_has_a_switch() -> None:
    switch = "{{ messages[0].content }}{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}"
    with fronted(chat_template=switch) as front:
        front.send(CHAT, reasoning_effort="none", **HELLO)
        assert front.prompt == "Hello</think>"
        front.send(CHAT, reasoning_effort="none", chat_template_kwargs={"enable_thinking": True}, **HELLO)
        assert front.prompt == "Hello"
    with fronted() as front:
        assert front.refused(CHAT, reasoning_effort="high", **HELLO).param == "reasoning_effort"
