"""Log-probabilities in both shapes, and what lm-evaluation-harness reads out of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.protocol import Tokens
from tests.api.openai.fronts import CHAT, COMPLETIONS, HELLO, Front, fronted, likelihood, tells
from tests.api.scripted import END_ID, TOKENIZER

TEXT = "The mill 你好 😀 runs."
PROMPT = "Say 你好: "
IDS = [*TOKENIZER.encode(TEXT).ids, END_ID]
PROMPT_IDS = TOKENIZER.encode(PROMPT).ids


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with fronted(tells(TEXT)) as front:
        yield front


def test_a_completions_lists_are_parallel_and_end_with_the_end_token(front: Front) -> None:
    (choice,) = front.post(COMPLETIONS, prompt=PROMPT, logprobs=2).choices
    told = choice.logprobs
    assert told.tokens == [TOKENIZER.token_text(id_) for id_ in IDS]
    assert told.token_logprobs == [likelihood(id_) for id_ in IDS]
    assert len(told.text_offset) == len(told.top_logprobs) == len(IDS)
    assert told.text_offset[0] == 0 and told.text_offset == sorted(told.text_offset)
    for token, offset in zip(told.tokens, told.text_offset, strict=True):
        if "\N{REPLACEMENT CHARACTER}" not in token and token != "</s>":
            assert choice.text.startswith(token, offset)


def test_the_token_that_came_is_in_the_top_set_with_the_very_same_number_and_the_greatest_is_too(front: Front) -> None:
    for count in (1, 2, 3):
        (choice,) = front.post(COMPLETIONS, prompt=PROMPT, logprobs=count).choices
        told = choice.logprobs
        for logprob, top in zip(told.token_logprobs, told.top_logprobs, strict=True):
            assert logprob in top.values() and max(top.values()) == -0.1
            assert count <= len(top) <= count + 1


def test_without_top_tokens_the_one_that_came_is_told_alone(front: Front) -> None:
    (choice,) = front.post(COMPLETIONS, prompt=PROMPT, logprobs=0).choices
    assert [list(top.values()) for top in choice.logprobs.top_logprobs] == [[likelihood(id_)] for id_ in IDS]


def test_tokens_with_one_text_are_not_lost_in_a_top_set() -> None:
    """Parts of characters all look alike by themselves."""
    parts = TOKENIZER.encode("😀").ids

    def script(command):
        from server.protocol import TokenLogprob

        top = [[TokenLogprob(parts[0], -0.5), TokenLogprob(parts[1], -1.5)]]
        yield Tokens(command.request_id, [parts[2]], "length", [-2.5], top_logprobs=top)

    assert len({TOKENIZER.token_text(id_) for id_ in parts[:3]}) == 1
    with fronted(script) as front:
        (choice,) = front.post(COMPLETIONS, prompt=PROMPT, logprobs=2, max_tokens=1).choices
        assert sorted(choice.logprobs.top_logprobs[0].values()) == [-2.5, -1.5, -0.5]


def test_echo_tells_the_prompts_tokens_with_null_for_the_first(front: Front) -> None:
    """As lm-evaluation-harness asks: lists of ids, one new token, and one entry more than the prompt has."""
    other_ids = TOKENIZER.encode("The river").ids
    answer = front.post(
        COMPLETIONS, prompt=[PROMPT_IDS, other_ids], echo=True, max_tokens=1, logprobs=1, temperature=0, seed=1234
    )
    for choice, ids in zip(answer.choices, (PROMPT_IDS, other_ids), strict=True):
        told = choice.logprobs
        assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == len(ids) + 1
        assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
        assert told.token_logprobs[1:] == [likelihood(id_) for id_ in [*ids[1:], IDS[0]]]
        is_greedy = [
            logprob == max(top.values())
            for logprob, top in zip(told.token_logprobs[1:], told.top_logprobs[1:], strict=True)
        ]
        assert is_greedy == [id_ == 5 for id_ in [*ids[1:], IDS[0]]]
        assert choice.text == TOKENIZER.decode(ids) + TOKENIZER.decode(IDS[:1])
        assert told.text_offset[-1] == len(TOKENIZER.decode(ids))


def test_a_prompt_of_one_token_has_one_entry_and_the_new_one() -> None:
    with fronted(tells(TEXT)) as front:
        (choice,) = front.post(COMPLETIONS, prompt=[PROMPT_IDS[:1]], echo=True, max_tokens=1, logprobs=1).choices
        assert choice.logprobs.token_logprobs == [None, likelihood(IDS[0])]


def test_an_end_token_that_comes_at_once_is_an_entry_too() -> None:
    with fronted(tells("")) as front:
        (choice,) = front.post(COMPLETIONS, prompt=[PROMPT_IDS], echo=True, max_tokens=1, logprobs=1).choices
        assert len(choice.logprobs.tokens) == len(PROMPT_IDS) + 1 and choice.logprobs.tokens[-1] == "</s>"


def test_a_streams_lists_are_those_of_the_answer(front: Front) -> None:
    (choice,) = front.post(COMPLETIONS, prompt=PROMPT, logprobs=1).choices
    parts = [chunk.choices[0].logprobs for chunk in front.stream(COMPLETIONS, prompt=PROMPT, logprobs=1)]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [item for part in parts for item in getattr(part, name)] == getattr(choice.logprobs, name)


def test_echo_with_logprobs_is_refused_for_a_stream_in_the_clients_words(front: Front) -> None:
    error = front.refused(COMPLETIONS, prompt=PROMPT, echo=True, logprobs=1, stream=True)
    assert error.param == "echo" and "decoder_input_details" not in error.message


def test_a_chats_tokens_have_the_bytes_of_the_text(front: Front) -> None:
    (choice,) = front.post(CHAT, logprobs=True, top_logprobs=2, **HELLO).choices
    content = choice.logprobs.content
    assert [token.logprob for token in content] == [likelihood(id_) for id_ in IDS]
    assert all(len(token.top_logprobs) == 2 for token in content)
    assert bytes(byte for token in content[:-1] for byte in token.bytes).decode() == choice.message.content
    assert content[-1].token == "</s>"


def test_a_chats_stream_tells_each_token_once(front: Front) -> None:
    chunks = front.stream(CHAT, logprobs=True, **HELLO)
    told = [token for chunk in chunks for token in (chunk.choices[0].logprobs or NOTHING).content]
    assert [token.logprob for token in told] == [likelihood(id_) for id_ in IDS]
    assert all(token.top_logprobs == [] for token in told)


def test_nothing_is_told_unless_asked_for(front: Front) -> None:
    assert front.post(CHAT, **HELLO).choices[0].logprobs is None
    assert front.post(COMPLETIONS, prompt="a").choices[0].logprobs is None
    assert not front.command.params.logprobs


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, {"prompt": "a", "logprobs": 21}, "logprobs"),
        (COMPLETIONS, {"prompt": "a", "logprobs": -1}, "logprobs"),
        (COMPLETIONS, {"prompt": "a", "logprobs": True}, "logprobs"),
        (CHAT, {**HELLO, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {**HELLO, "top_logprobs": 2}, "top_logprobs"),
        (CHAT, {**HELLO, "logprobs": 2}, "logprobs"),
    ],
)
def test_what_cannot_be_told_is_refused_by_the_clients_name(front: Front, path: str, body: dict, param: str) -> None:
    error = front.refused(path, **body)
    assert error.param == param and error.message.startswith(param)


def test_a_token_that_could_not_come_has_a_number_that_json_can_write() -> None:
    def script(command):
        yield Tokens(command.request_id, IDS[:1], "length", [float("-inf")])

    with fronted(script) as front:
        assert front.post(COMPLETIONS, prompt="a", logprobs=0).choices[0].logprobs.token_logprobs == [-9999.0]
        assert front.post(CHAT, logprobs=True, **HELLO).choices[0].logprobs.content[0].logprob == -9999.0


class _Nothing:
    content: tuple = ()


NOTHING = _Nothing()
