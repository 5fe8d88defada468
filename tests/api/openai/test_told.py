"""What vLLM's and llama.cpp's clients ask to be told beside the text, and how they say where a chat's prompt ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from server.protocol import Generate, Tokens
from tests.api.openai.fronts import CHAT, COMPLETIONS, HELLO, TEXT, Front, events_of, fronted, likelihood, tells
from tests.api.scripted import END_ID, TOKENIZER, Step

BODIES: dict[str, dict[str, Any]] = {COMPLETIONS: {"prompt": "Hello mill"}, CHAT: HELLO}
BOTH = pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
IDS = [*TOKENIZER.encode(TEXT).ids, END_ID]
ASSISTANT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "The old"}]


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with fronted(tells(TEXT)) as front:
        yield front


def sent(front: Front, path: str, **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = front.send(path, **{**BODIES[path], **body}).json()
    return answer


def events(front: Front, path: str, **body: Any) -> list[dict[str, Any]]:
    text = front.send(path, **{**BODIES[path], **body}, stream=True).text
    return [msgspec.json.decode(event) for event in events_of(text) if event != "[DONE]"]


# Token ids.


@BOTH
def test_token_ids_are_those_of_prompt_and_output(front: Front, path: str) -> None:
    answer = sent(front, path, return_token_ids=True)
    (choice,) = answer["choices"]
    told = choice if path == COMPLETIONS else answer
    assert told["prompt_token_ids"] == front.command.prompt_ids and choice["token_ids"] == IDS
    plain = sent(front, path, return_token_ids=False)
    assert "prompt_token_ids" not in {**plain, **plain["choices"][0]} and "token_ids" not in plain["choices"][0]


@BOTH
def test_streamed_token_ids_join_to_the_outputs(front: Front, path: str) -> None:
    chunks = events(front, path, return_token_ids=True)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [id_ for choice in choices for id_ in choice.get("token_ids", [])] == IDS
    told = choices if path == COMPLETIONS else chunks
    assert [one["prompt_token_ids"] for one in told if "prompt_token_ids" in one] == [front.command.prompt_ids]


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_may_call_tokens_by_their_ids(front: Front, path: str, stream: bool) -> None:
    options: dict[str, Any] = {"logprobs": 1} if path == COMPLETIONS else {"logprobs": True, "top_logprobs": 1}
    options["return_tokens_as_token_ids"] = True
    answers = events(front, path, **options) if stream else [sent(front, path, **options)]
    told = [choice["logprobs"] for answer in answers for choice in answer["choices"] if choice["logprobs"]]
    if path == COMPLETIONS:
        assert [name for one in told for name in one["tokens"]] == [f"token_id:{id_}" for id_ in IDS]
        assert all(key.startswith("token_id:") for one in told for top in one["top_logprobs"] for key in top)
    else:
        entries = [entry for one in told for entry in one["content"]]
        assert [entry["token"] for entry in entries] == [f"token_id:{id_}" for id_ in IDS]
        assert {top["token"] for entry in entries for top in entry["top_logprobs"]} == {"token_id:5"}


# The prompt's log-probabilities.


@BOTH
@pytest.mark.parametrize("count", [0, 2])
def test_prompt_logprobs_tell_of_every_token_and_of_the_likeliest(front: Front, path: str, count: int) -> None:
    answer = sent(front, path, prompt_logprobs=count)
    told = (answer["choices"][0] if path == COMPLETIONS else answer)["prompt_logprobs"]
    first, *others = told
    ids = front.command.prompt_ids
    assert first is None and len(others) == len(ids) - 1
    for token_id, place in zip(ids[1:], others, strict=True):
        shown = place[str(token_id)]
        assert shown["logprob"] == likelihood(token_id) and shown["decoded_token"] == TOKENIZER.token_text(token_id)
        assert {"5", "6"} <= place.keys() if count else place.keys() == {str(token_id)}
        assert not count or (place["5"]["rank"], place["6"]["rank"]) == (1, 2)
    assert answer["choices"][0]["logprobs"] is None


def test_prompt_logprobs_and_logprobs_each_tell_as_many_as_they_ask_for(front: Front) -> None:
    answer = sent(front, CHAT, prompt_logprobs=2, logprobs=True, top_logprobs=1)
    assert {len(entry["top_logprobs"]) for entry in answer["choices"][0]["logprobs"]["content"]} == {1}
    assert all({"5", "6"} <= place.keys() for place in answer["prompt_logprobs"][1:])


@BOTH
def test_prompt_logprobs_that_cannot_be_are_refused_under_their_own_name(front: Front, path: str) -> None:
    for options in ({"prompt_logprobs": -1}, {"prompt_logprobs": 21}, {"prompt_logprobs": 1, "stream": True}):
        error = front.refused(path, **BODIES[path], **options)
        assert error.param == "prompt_logprobs"
        assert "top_n_tokens" not in error.message and "decoder_input_details" not in error.message


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("name", ["return_token_ids", "prompt_logprobs", "return_tokens_as_token_ids"])
def test_routes_without_a_place_for_it_refuse_it_by_name(front: Front, path: str, name: str) -> None:
    body = {"input": "Hello"} if path == "/v1/responses" else {"max_tokens": 4, **HELLO}
    assert front.refused(path, **body, **{name: 1 if name == "prompt_logprobs" else True}).param == name


# The log-probabilities of given tokens.

GIVEN = [300, 7, 41]


def asked(path: str, count: int = 0) -> dict[str, Any]:
    """The fields that ask for log-probabilities, and for those of ``count`` of the most likely tokens."""
    return {"logprobs": count} if path == COMPLETIONS else {"logprobs": True, "top_logprobs": count}


@BOTH
@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("stream", [False, True])
def test_given_tokens_are_told_of_in_place_of_the_likeliest(front: Front, path: str, count: int, stream: bool) -> None:
    options = {**asked(path, count), "logprob_token_ids": GIVEN, "return_tokens_as_token_ids": True}
    answers = events(front, path, **options) if stream else [sent(front, path, **options)]
    told = [choice["logprobs"] for answer in answers for choice in answer["choices"] if choice["logprobs"]]
    expected = {f"token_id:{id_}": likelihood(id_) for id_ in GIVEN}
    if path == COMPLETIONS:
        tops = [top for one in told for top in one["top_logprobs"]]
        assert tops == [{**expected, f"token_id:{id_}": likelihood(id_)} for id_ in IDS]
    else:
        tops = [entry["top_logprobs"] for one in told for entry in one["content"]]
        assert len(tops) == len(IDS)
        assert {tuple((top["token"], top["logprob"]) for top in place) for place in tops} == {tuple(expected.items())}
    assert front.command.params.logprob_token_ids == tuple(GIVEN)


@BOTH
def test_the_prompts_likeliest_tokens_stand_beside_given_ones(front: Front, path: str) -> None:
    answer = sent(front, path, prompt_logprobs=2, **asked(path, 1), logprob_token_ids=GIVEN)
    told = (answer["choices"][0] if path == COMPLETIONS else answer)["prompt_logprobs"]
    assert all({"5", "6"} <= place.keys() for place in told[1:])
    logprobs = answer["choices"][0]["logprobs"]
    others = logprobs["top_logprobs"][0] if path == COMPLETIONS else logprobs["content"][0]["top_logprobs"]
    assert len(others) >= len(GIVEN)


def test_an_echoed_prompt_keeps_its_likeliest_tokens_beside_given_ones(front: Front) -> None:
    options = {"echo": True, "logprobs": 2, "return_tokens_as_token_ids": True}
    (choice,) = sent(front, COMPLETIONS, **options, logprob_token_ids=[300])["choices"]
    tops = choice["logprobs"]["top_logprobs"]
    num_prompt = len(front.command.prompt_ids)
    assert all({"token_id:5", "token_id:6"} <= top.keys() for top in tops[1:num_prompt])
    assert all("token_id:300" in top and "token_id:6" not in top for top in tops[num_prompt:])


@BOTH
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"logprob_token_ids": [5]}, "requires logprobs"),
        ({"logprob_token_ids": [-1]}, "0 to"),
        ({"logprob_token_ids": [10_000_000]}, "0 to"),
        ({"logprob_token_ids": list(range(129))}, "at most 128"),
    ],
)
def test_given_tokens_that_cannot_be_told_are_refused_by_name(
    front: Front, path: str, options: Any, words: str
) -> None:
    logprobs = {} if words == "requires logprobs" else asked(path)
    error = front.refused(path, **BODIES[path], **logprobs, **options)
    assert error.param.startswith("logprob_token_ids") and words in error.message


def test_given_tokens_need_a_place_of_the_output(front: Front) -> None:
    body = {"echo": True, "max_tokens": 0, "logprobs": 1, "logprob_token_ids": [5]}
    assert front.refused(COMPLETIONS, **BODIES[COMPLETIONS], **body).param == "logprob_token_ids"


@BOTH
def test_an_empty_list_of_given_tokens_asks_for_nothing(front: Front, path: str) -> None:
    answer = sent(front, path, logprob_token_ids=[])
    assert answer["choices"][0]["logprobs"] is None and front.command.params.logprob_token_ids == ()


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_routes_without_log_probabilities_refuse_given_tokens(front: Front, path: str) -> None:
    body = {"input": "Hello"} if path == "/v1/responses" else {"max_tokens": 4, **HELLO}
    assert front.refused(path, **body, logprob_token_ids=[5]).param == "logprob_token_ids"
    assert front.send(path, **body, logprob_token_ids=[]).status_code == 200


# Special tokens and stop strings in the text.


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_special_tokens_stand_in_the_text_where_they_are_not_skipped(path: str, stream: bool) -> None:
    with fronted(says_special) as front:
        assert text_of(front, path, stream) == "The mill"
        assert text_of(front, path, stream, skip_special_tokens=True) == "The mill"
        assert text_of(front, path, stream, skip_special_tokens=False) == f"The{MARK} mill"
        kept = text_of(front, path, stream, skip_special_tokens=False, include_stop_str_in_output=True)
        assert kept == f"The{MARK} mill{TOKENIZER.token_text(END_ID)}"


MARK_ID = next(id_ for id_ in sorted(TOKENIZER.special_ids) if id_ != END_ID)
MARK = TOKENIZER.token_text(MARK_ID)


def says_special(command: Generate) -> Iterator[Step]:
    the, mill = (TOKENIZER.encode(text, add_special_tokens=False).ids for text in ("The", " mill"))
    for token_id in (*the, MARK_ID, *mill):
        yield Tokens(command.request_id, [token_id])
    yield Tokens(command.request_id, [END_ID], "stop")


def text_of(front: Front, path: str, stream: bool, **options: Any) -> str:
    if stream:
        choices = [choice for chunk in events(front, path, **options) for choice in chunk["choices"]]
        return "".join(
            choice["text"] if path == COMPLETIONS else choice["delta"].get("content", "") for choice in choices
        )
    (choice,) = sent(front, path, **options)["choices"]
    text: str = choice["text"] if path == COMPLETIONS else choice["message"]["content"]
    return text


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_the_stop_string_stands_at_the_end_where_it_is_asked_for(front: Front, path: str, stream: bool) -> None:
    before, stop, _ = TEXT.partition("😀 r")
    assert text_of(front, path, stream, stop=[stop]) == before
    assert text_of(front, path, stream, stop=[stop], include_stop_str_in_output=True) == before + stop
    assert text_of(front, path, stream, include_stop_str_in_output=True) == TEXT


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_other_dialects_write_stop_strings_and_special_tokens_too(path: str) -> None:
    body = {"input": "Hello"} if path == "/v1/responses" else {"max_tokens": 40, **HELLO}
    with fronted(says_special) as front:
        answer = front.send(path, **body, skip_special_tokens=False, stop=[" mi"], include_stop_str_in_output=True)
        assert f"The{MARK} mi" in answer.text and "mill" not in answer.text


# Where the prompt of a chat ends.


def test_a_turn_is_begun_unless_the_client_says_no(front: Front) -> None:
    sent(front, CHAT)
    begun = front.prompt
    sent(front, CHAT, add_generation_prompt=False)
    assert begun == front.prompt + "<|im_start|>assistant\n"


@pytest.mark.parametrize("said", ["The old", "  The old mill ", "The old\n"])
def test_an_answer_continues_the_last_message(front: Front, said: str) -> None:
    messages = [ASSISTANT[0], {"role": "assistant", "content": said}]
    sent(front, CHAT, messages=messages, continue_final_message=True)
    assert front.prompt.endswith("<|im_start|>assistant\n" + said)
    with fronted(chat_template=STRIPS) as stripping:
        sent(stripping, CHAT, messages=messages, continue_final_message=True, add_generation_prompt=False)
        assert stripping.prompt.endswith("assistant: " + said.strip())


STRIPS = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}|{% endfor %}"


def test_a_message_that_cannot_be_continued_is_refused_by_name(front: Front) -> None:
    empty = [ASSISTANT[0], {"role": "assistant", "content": " "}]
    assert front.refused(CHAT, messages=empty, continue_final_message=True).param == "messages"
    both = {"continue_final_message": True, "add_generation_prompt": True}
    assert front.refused(CHAT, messages=ASSISTANT, **both).param == "continue_final_message"


@pytest.mark.parametrize("stream", [False, True])
def test_echo_begins_an_answer_with_the_assistants_last_message(front: Front, stream: bool) -> None:
    options = {"messages": ASSISTANT, "continue_final_message": True}
    assert text_of(front, CHAT, stream, **options) == TEXT
    assert text_of(front, CHAT, stream, **options, echo=True) == "The old" + TEXT
    assert text_of(front, CHAT, stream, echo=True) == TEXT, "the last message is the user's"


def test_a_role_is_the_templates_to_know(front: Front) -> None:
    messages = [{"role": "wizard", "content": "Abracadabra"}, *HELLO["messages"]]
    sent(front, CHAT, messages=messages)
    assert "<|im_start|>wizard\nAbracadabra<|im_end|>" in front.prompt
    ignores = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    raises = (
        "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
    )
    for template, param in ((ignores, "messages.0.role"), (raises, "messages")):
        with fronted(chat_template=template) as strict:
            assert strict.refused(CHAT, messages=messages).param == param
