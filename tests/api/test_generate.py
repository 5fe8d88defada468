"""What /generate answers when all is well: shapes, texts, counts, and what reaches the engine."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from starlette.testclient import TestClient

from server import metrics
from server.protocol import Tokens
from server.serving.generator import ServedGenerator
from tests.api.scripted import END_ID, MAX_MODEL_LEN, TOKENIZER, Script, front, says
from tests.tiny_tokenizers import UNK

TEXT = "The mill 你好 😀 runs."
SAYS_TEXT = says(TEXT)


def client_of(script: Script = SAYS_TEXT, **settings: Any) -> TestClient:
    return TestClient(front(script, **settings))


def post(client: TestClient, inputs: Any = "Hello", **parameters: Any) -> Any:
    response = client.post("/generate", json={"inputs": inputs, "parameters": parameters})
    assert response.status_code == 200, response.text
    return response.json()


def stream(client: TestClient, inputs: str = "Hello", **parameters: Any) -> list[dict[str, Any]]:
    response = client.post("/generate", json={"inputs": inputs, "parameters": parameters, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("\n\n") and "\r" not in response.text
    events = response.text.removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def params_of(client: TestClient) -> Any:
    return client.app.state.worker.commands[-1].params  # type: ignore[attr-defined]


def test_a_text_is_answered_with_the_generated_text_alone() -> None:
    assert post(client_of()) == {"generated_text": TEXT}


def test_details_come_when_asked_for() -> None:
    answer = post(client_of(), details=True, seed=7)
    ids = [*TOKENIZER.encode(TEXT).ids, END_ID]
    details = answer["details"]
    tokens = details.pop("tokens")
    timings = details.pop("timings")
    assert 0 <= timings["queue_s"] <= timings["first_token_s"] <= timings["total_s"] < 60
    assert details == {
        "finish_reason": "eos_token",
        "generated_tokens": len(ids),
        "seed": 7,
        "input_length": len(TOKENIZER.encode("Hello").ids),
        "cached_tokens": 3,
        "prefill": [],
        "sequence": 0,
        "stop": END_ID,
        "num_rewinds": 0,
    }
    assert [token["id"] for token in tokens] == ids
    assert "".join(token["text"] for token in tokens) == TEXT
    assert [token["logprob"] for token in tokens] == [-0.5 * i for i in range(1, len(ids) + 1)]
    assert [token["special"] for token in tokens] == [False] * (len(ids) - 1) + [True]


def test_a_list_is_a_batch_whose_answers_come_in_its_order() -> None:
    def echo(command):
        ids = command.prompt_ids
        yield 0.05 / len(ids)
        yield Tokens(command.request_id, [*ids, END_ID], "stop")

    texts = ["The river", "mill", "The miller counts the sacks"]
    client = client_of(echo)
    assert post(client, texts) == [{"generated_text": text} for text in texts]
    assert {command.params.seed for command in client.app.state.worker.commands} == {params_of(client).seed}
    assert {command.params.num_return_sequences for command in client.app.state.worker.commands} == {1}


def test_a_stream_has_one_event_per_token_and_one_last_event() -> None:
    events = stream(client_of(), details=True)
    ids = [*TOKENIZER.encode(TEXT).ids, END_ID]
    assert [event["index"] for event in events] == list(range(1, len(ids) + 1))
    assert [event["token"]["id"] for event in events] == ids
    assert "".join(event["token"]["text"] for event in events) == TEXT
    assert all(set(event) == {"index", "token", "generated_text", "details"} for event in events)
    assert all(event["generated_text"] is None and event["details"] is None for event in events[:-1])
    assert events[-1]["generated_text"] == TEXT
    assert events[-1]["details"]["finish_reason"] == "eos_token"
    assert events[-1]["details"]["generated_tokens"] == len(ids)
    assert isinstance(events[-1]["details"]["seed"], int)


def test_a_stream_is_not_cached_and_not_buffered() -> None:
    headers = client_of().post("/generate", json={"inputs": "a", "stream": True}).headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"


def test_a_stop_string_ends_the_text_before_it_streaming_or_not() -> None:
    client = client_of(says("one two\nUser: three"))
    assert post(client, stop=["\nUser:"], details=True)["details"]["finish_reason"] == "stop_sequence"
    for stop in ("\nUser:", ["zzz", "\nUser:"]):
        assert post(client, stop=stop) == {"generated_text": "one two"}
        events = stream(client, stop=stop)
        assert "".join(event["token"]["text"] for event in events) == events[-1]["generated_text"] == "one two"
        assert events[-1]["details"]["finish_reason"] == "stop_sequence"
    assert not client.app.state.worker.running


def test_what_may_be_a_stop_string_is_sent_when_it_is_none_even_with_the_end_token() -> None:
    events = stream(client_of(says("one two\nUs")), stop=["\nUser:"])
    assert events[-1]["generated_text"] == "one two\nUs"
    # Clients skip the text of special tokens.
    assert "".join(event["token"]["text"] for event in events if not event["token"]["special"]) == "one two\nUs"


def test_a_stop_token_ends_the_text_without_its_own() -> None:
    first, *_, last = TOKENIZER.encode("The mill runs").ids
    answer = post(client_of(says("The mill runs on")), stop_token_ids=[last], details=True)
    assert "The mill runs".startswith(answer["generated_text"]) and answer["generated_text"] != "The mill runs"
    assert answer["details"]["finish_reason"] == "stop_sequence"
    assert answer["details"]["tokens"][0]["id"] == first and answer["details"]["tokens"][-1]["id"] == last


def test_a_special_token_as_stop_string_ends_the_text_although_it_has_none() -> None:
    unk_id = TOKENIZER.backend.token_to_id(UNK)

    def script(command):
        for token_id in [*TOKENIZER.encode("The mill").ids, unk_id, *TOKENIZER.encode(" runs").ids]:
            ends = token_id in command.params.stop_token_ids
            yield Tokens(command.request_id, [token_id], "stop" if ends else None)

    client = client_of(script)
    answer = post(client, stop=[UNK, "zzz"], details=True)
    assert answer["generated_text"] == "The mill"
    assert answer["details"]["finish_reason"] == "stop_sequence"
    assert params_of(client).stop_token_ids == (unk_id,)


def test_the_length_limit_is_named_as_the_reason() -> None:
    answer = post(client_of(), max_new_tokens=3, details=True)
    assert answer["details"]["finish_reason"] == "length"
    assert answer["details"]["generated_tokens"] == 3
    assert answer["generated_text"] == TOKENIZER.decode(TOKENIZER.encode(TEXT).ids[:3])


def test_a_character_cut_by_the_length_limit_ends_as_a_replacement_character() -> None:
    ids = TOKENIZER.encode("ไ").ids
    assert len(ids) > 1
    answer = post(client_of(says("ไ")), max_new_tokens=1, details=True)
    assert answer["generated_text"] == "\N{REPLACEMENT CHARACTER}"


def test_the_full_text_begins_with_the_prompt() -> None:
    assert post(client_of(), "Say: ", return_full_text=True)["generated_text"] == "Say: " + TEXT
    assert stream(client_of(), "Say: ", return_full_text=True)[-1]["generated_text"] == "Say: " + TEXT


def test_several_tokens_in_one_reply_are_several_events() -> None:
    ids = TOKENIZER.encode("The mill runs").ids

    def script(command):
        yield Tokens(command.request_id, ids[:2])
        yield Tokens(command.request_id, [*ids[2:], END_ID], "stop")

    events = stream(client_of(script))
    assert [event["token"]["id"] for event in events] == [*ids, END_ID]
    assert events[-1]["generated_text"] == "The mill runs"


@pytest.mark.parametrize(("reason", "told"), [("length", "length"), ("stop", "stop_sequence")])
def test_an_end_that_comes_without_a_token_is_one_last_event_with_what_was_held_back(reason: Any, told: str) -> None:
    ids = TOKENIZER.encode("one two\nUs").ids

    def script(command):
        yield Tokens(command.request_id, ids)
        yield Tokens(command.request_id, [], reason)

    client = client_of(script)
    events = stream(client, stop=["\nUser:"])
    assert [event["generated_text"] for event in events] == [None] * len(ids) + ["one two\nUs"]
    assert "".join(event["token"]["text"] for event in events) == "one two\nUs"
    assert events[-1]["details"]["finish_reason"] == told
    assert events[-1]["details"]["generated_tokens"] == len(ids)
    assert post(client, stop=["\nUser:"]) == {"generated_text": "one two\nUs"}


def test_a_logprob_that_is_no_number_is_null() -> None:
    def script(command):
        yield Tokens(command.request_id, [5, END_ID], "stop", [float("-inf"), float("nan")])

    assert [event["token"]["logprob"] for event in stream(client_of(script), details=True)] == [None, None]


def test_nulls_are_absent_fields() -> None:
    body = {"inputs": "a", "parameters": {"temperature": None, "stop": None, "grammar": None}, "stream": None}
    assert client_of().post("/generate", json={**body, "model": None}).json() == {"generated_text": TEXT}
    assert client_of().post("/generate", json={"inputs": "a", "parameters": None}).status_code == 200


def test_only_the_last_tokens_of_a_truncated_prompt_count() -> None:
    client = client_of()
    ids = TOKENIZER.encode("The river runs past the mill").ids
    answer = post(client, "The river runs past the mill", truncate=4, details=True)
    assert answer["details"]["input_length"] == 4
    assert client.app.state.worker.commands[-1].prompt_ids == ids[-4:]


def test_new_tokens_by_default_fill_no_more_than_the_context() -> None:
    client = client_of()
    post(client)
    num_prompt = len(client.app.state.worker.commands[-1].prompt_ids)
    assert params_of(client).max_new_tokens == MAX_MODEL_LEN - num_prompt
    client = client_of(default_max_new_tokens=5)
    post(client)
    assert params_of(client).max_new_tokens == 5


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, {"do_sample": False}),
        ({"do_sample": True}, {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}),
        ({"temperature": 0.5}, {"do_sample": True, "temperature": 0.5}),
        ({"temperature": 1}, {"do_sample": True, "temperature": 1.0}),
        ({"top_p": 0.9}, {"do_sample": True, "top_p": 0.9}),
        ({"top_k": 5}, {"do_sample": True, "top_k": 5}),
        ({"min_p": 0.1}, {"do_sample": True, "min_p": 0.1}),
        ({"typical_p": 0.3}, {"do_sample": True, "typical_p": 0.3}),
        ({"temperature": 0}, {"do_sample": False, "temperature": 1.0}),
        ({"temperature": 0.0, "top_p": 0.9}, {"do_sample": False, "top_p": 1.0}),
        ({"temperature": 1e-308}, {"do_sample": False}),
        ({"do_sample": False}, {"do_sample": False}),
        ({"do_sample": False, "temperature": 1.0, "top_p": 1.0}, {"do_sample": False}),
        ({"repetition_penalty": 1.2}, {"do_sample": False, "repetition_penalty": 1.2}),
        ({"seed": 2**63 - 1}, {"seed": 2**63 - 1}),
        ({"ignore_eos": True, "min_new_tokens": 2}, {"ignore_eos": True, "min_new_tokens": 2}),
        ({"presence_penalty": -2, "frequency_penalty": 2}, {"presence_penalty": -2.0, "frequency_penalty": 2.0}),
        ({"details": True}, {"logprobs": True}),
    ],
)
def test_whoever_names_a_way_to_sample_is_sampled_for(parameters: dict[str, Any], expected: dict[str, Any]) -> None:
    client = client_of()
    post(client, **parameters)
    params = params_of(client)
    assert {name: getattr(params, name) for name in expected} == expected
    assert params.end_token_ids == (END_ID,)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 7, "repetition_penalty": 1.1}),
        ({"temperature": 0.2}, {"do_sample": True, "temperature": 0.2, "top_p": 0.9}),
        ({"temperature": 0}, {"do_sample": False, "top_p": 1.0, "repetition_penalty": 1.1}),
        ({"do_sample": False}, {"do_sample": False, "temperature": 1.0}),
        ({"max_new_tokens": 9, "repetition_penalty": 1.0}, {"max_new_tokens": 9, "repetition_penalty": 1.0}),
    ],
)
def test_the_request_comes_before_the_models_own_defaults(parameters: dict[str, Any], expected: dict[str, Any]) -> None:
    defaults = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 7, "repetition_penalty": 1.1}
    client = client_of(generation_config={**defaults, "end_token_ids": [END_ID], "top_k": None})
    post(client, **parameters)
    params = params_of(client)
    assert {name: getattr(params, name) for name in expected} == expected


def test_a_seed_is_chosen_and_told_where_none_was_given() -> None:
    client = client_of()
    seeds = {post(client, details=True, do_sample=True)["details"]["seed"] for _ in range(3)}
    assert len(seeds) == 3 and params_of(client).seed in seeds


def test_a_served_generator_describes_its_limits() -> None:
    described = client_of().app.front.registry.get(ServedGenerator, None).describe()
    assert described["max_total_tokens"] == MAX_MODEL_LEN
    json.dumps(described)


def test_tokens_after_a_stop_string_are_neither_sent_nor_counted() -> None:
    ids = TOKENIZER.encode("one two three four").ids

    def script(command):
        yield Tokens(command.request_id, [*ids, END_ID], "stop")

    events = stream(client_of(script), stop=["two"])
    assert events[-1]["generated_text"] == "one "
    assert events[-1]["details"]["finish_reason"] == "stop_sequence"
    assert events[-1]["details"]["generated_tokens"] == len(events) < len(ids)
    assert TOKENIZER.decode(ids[: len(events)]).endswith("two")


def test_an_end_token_that_is_not_special_has_no_text_either() -> None:
    mill = TOKENIZER.encode("mill").ids

    def script(command):
        yield Tokens(command.request_id, [*TOKENIZER.encode("The ").ids, mill[-1]], "stop")

    client = client_of(script, generation_config={"end_token_ids": [mill[-1]]})
    assert post(client, details=True)["generated_text"] == "The "
    assert post(client, details=True)["details"]["finish_reason"] == "eos_token"


@pytest.mark.parametrize("streamed", [False, True])
def test_the_record_of_a_request_is_complete_and_holds_no_text(
    streamed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    client = client_of(says("The secret mill runs", pause_s=0.001))
    num_tokens = len(TOKENIZER.encode("The secret mill runs").ids) + 1
    body = {"inputs": "Hello secret", "stream": streamed, "parameters": {"stop": ["secrets"]}}
    with caplog.at_level(logging.DEBUG):
        client.post("/generate", json=body)
    fields = next(record.fields for record in caplog.records if record.message == "request finished")
    expected = {
        "model": "tiny",
        "status": 200,
        "finish_reason": "stop",
        "prompt_tokens": len(TOKENIZER.encode("Hello secret").ids),
        "cached_tokens": 3,
        "output_tokens": num_tokens,
        "num_inputs": 1,
        "streamed": streamed,
    }
    assert {name: fields[name] for name in expected} == expected
    assert 0 < fields["queue_ms"] <= fields["ttft_ms"] <= fields["total_ms"]
    logged = str([record.__dict__ for record in caplog.records])
    assert "secret" not in logged and "generated_text" not in logged


def test_first_tokens_and_gaps_are_measured() -> None:
    def count(name: str) -> float:
        return metrics.REGISTRY.get_sample_value(name, {"model": "tiny"}) or 0.0

    names = ("sluice_time_to_first_token_seconds_count", "sluice_inter_token_seconds_count")
    before = [count(name) for name in names]
    post(client_of())
    assert [count(name) - old for name, old in zip(names, before, strict=True)] == [
        1,
        len(TOKENIZER.encode(TEXT).ids),
    ]
