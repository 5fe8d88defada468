"""n samples and hypotheses of a beam search, as clients see them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.inference._generated.types import TextGenerationOutput
from starlette.testclient import TestClient

from server.errors import NoTokenLeft
from server.protocol import Generate, PromptLogprobs, TokenLogprob, Tokens
from server.serving.generator import ServedGenerator
from tests.api.scripted import END_ID, TOKENIZER, Step, front
from tests.api.several import TEXTS, client_of, command_of, post, says_each
from tests.api.shell import listening


def test_several_samples_are_answered_in_their_order_and_the_first_stands_where_one_would() -> None:
    client = client_of(says_each(*TEXTS))
    answer = post(client, num_return_sequences=4, do_sample=True)
    assert answer == {"generated_text": TEXTS[0], "generated_texts": TEXTS}
    assert command_of(client).params.num_return_sequences == 4
    assert post(client, n=2, do_sample=True) == {"generated_text": TEXTS[0], "generated_texts": TEXTS[:2]}


def test_each_input_of_a_list_has_its_own_samples() -> None:
    answer = post(client_of(says_each(*TEXTS)), ["a", "b"], n=2, do_sample=True)
    assert answer == [{"generated_text": TEXTS[0], "generated_texts": TEXTS[:2]}] * 2


def test_the_full_text_of_every_sample_begins_with_the_prompt() -> None:
    answer = post(client_of(says_each(*TEXTS)), "Say: ", n=2, do_sample=True, return_full_text=True)
    assert answer["generated_texts"] == ["Say: " + text for text in TEXTS[:2]]


def test_events_of_several_samples_carry_their_number_and_each_ends_once() -> None:
    events = post(client_of(says_each(*TEXTS)), stream=True, n=4, do_sample=True, seed=5)
    for number, text in enumerate(TEXTS):
        own = [event for event in events if event["sequence"] == number]
        assert [event["index"] for event in own] == list(range(1, len(own) + 1))
        assert "".join(event["token"]["text"] for event in own) == text
        assert [event["generated_text"] for event in own] == [None] * (len(own) - 1) + [text]
        details = own[-1]["details"]
        assert (details["sequence"], details["seed"], details["finish_reason"]) == (number, 5, "eos_token")
        assert details["generated_tokens"] == len(own)
        assert 0 < details["timings"]["first_token_s"] <= details["timings"]["total_s"]
    assert {event["sequence"] for event in events} == {0, 1, 2, 3}


def test_tokens_of_one_step_leave_together() -> None:
    app = front(says_each("The mill", "The mill"))
    with listening(app) as port:
        client = InferenceClient(model=f"http://127.0.0.1:{port}/generate", token="none")
        assert client.text_generation("Hello", stream=False) == "The mill"
    client = TestClient(app)
    events = post(client, stream=True, n=2, do_sample=True)
    assert [event["sequence"] for event in events] == [0, 1] * (len(events) // 2)


def test_a_stop_string_ends_one_sample_and_the_others_go_on() -> None:
    client = client_of(says_each("one two three", "one mill runs for long"))
    answer = post(client, n=2, do_sample=True, stop=["two"], details=True)
    assert answer["generated_texts"] == ["one ", "one mill runs for long"]
    assert answer["details"]["stop"] == "two"
    assert answer["details"]["finish_reason"] == "stop_sequence"
    [other] = answer["details"]["best_of_sequences"]
    assert (other["finish_reason"], other["stop"]) == ("eos_token", END_ID)
    events = post(client, stream=True, n=2, do_sample=True, stop=["two"])
    ends = [(event["sequence"], event["generated_text"]) for event in events if event["generated_text"] is not None]
    assert ends == [(0, "one "), (1, "one mill runs for long")]
    assert not client.app.state.worker.running  # type: ignore[attr-defined]


def test_the_worker_is_released_when_every_sample_has_its_stop_string() -> None:
    def script(command: Generate) -> Iterator[Step]:
        for step, token_id in enumerate(TOKENIZER.encode("one two" + " mill" * 50).ids):
            assert step < 20, "nothing is computed after the last stop string"
            yield [Tokens(command.request_id, [token_id], index=i) for i in range(2)]

    answer = post(client_of(script), n=2, do_sample=True, stop=["two"])
    assert answer["generated_texts"] == ["one ", "one "]


@pytest.mark.parametrize(
    ("parameters", "stream", "named"),
    [
        ({"best_of": 2, "do_sample": True}, True, ["best_of", "stream"]),
        ({"best_of": 2, "num_beams": 2}, False, ["best_of", "num_beams"]),
        ({"rank_by": {"model": "mood", "label": "neutral"}}, False, ["rank_by", "best_of"]),
        ({"best_of": 2, "n": 3, "do_sample": True}, False, ["best_of", "n"]),
    ],
)
def test_what_does_not_go_together_is_refused_by_both_names(
    parameters: dict[str, Any], stream: bool, named: list[str]
) -> None:
    error = post(client_of(says_each(*TEXTS)), status=422, stream=stream, **parameters)
    assert all(name in error["message"] for name in named)


def test_hypotheses_come_with_their_scores_and_the_engine_knows_the_stop_strings() -> None:
    def script(command: Generate) -> Iterator[Step]:
        both = TOKENIZER.encode("one").ids
        yield [Tokens(command.request_id, both, index=i) for i in range(2)]
        yield [
            Tokens(command.request_id, TOKENIZER.encode(" two").ids, "stop", index=0, score=-1.0),
            Tokens(command.request_id, [*TOKENIZER.encode(" mill").ids, END_ID], "stop", index=1, score=-2.0),
        ]

    client = client_of(script)
    answer = post(client, num_beams=4, num_return_sequences=2, stop=["two"], details=True)
    assert answer["generated_texts"] == ["one ", "one mill"]
    assert command_of(client).params.stop_strings == ("two",)
    details = answer["details"]
    assert [details["score"], details["best_of_sequences"][0]["score"]] == [-1.0, -2.0]
    assert details["stop"] == "two"


def test_a_hypothesis_that_the_engine_ended_at_a_stop_string_is_cut_before_it() -> None:
    ids = TOKENIZER.encode("The mill runs on").ids

    def script(command: Generate) -> Iterator[Step]:
        yield Tokens(command.request_id, ids, "stop", score=-0.25)

    answer = post(client_of(script), num_beams=2, stop=["runs on"], details=True)
    assert answer["generated_text"] == "The mill "
    assert answer["details"]["finish_reason"] == "stop_sequence"
    assert (answer["details"]["stop"], answer["details"]["score"]) == ("runs on", -0.25)


@pytest.mark.parametrize(
    ("parameters", "rows"),
    [
        ({}, 1),
        ({"n": 3, "do_sample": True}, 3),
        ({"best_of": 4, "do_sample": True}, 4),
        ({"num_beams": 4}, 4),
        ({"num_beams": 4, "num_return_sequences": 2}, 4),
    ],
)
def test_admission_counts_every_row_that_is_computed(parameters: dict[str, Any], rows: int) -> None:
    app = front(says_each(*TEXTS))
    admission = app.front.registry.get(ServedGenerator, None).admission
    costs: list[int] = []
    admit = admission.admit
    admission.admit = lambda num_tokens, num_requests=1: costs.append(num_tokens) or admit(num_tokens, num_requests)
    post(TestClient(app), max_new_tokens=20, **parameters)
    assert costs == [len(TOKENIZER.encode("Hello").ids) + rows * 20]


def test_guidance_costs_its_prompt_and_its_rows_too() -> None:
    app = front(says_each(*TEXTS))
    admission = app.front.registry.get(ServedGenerator, None).admission
    costs: list[int] = []
    admit = admission.admit
    admission.admit = lambda num_tokens, num_requests=1: costs.append(num_tokens) or admit(num_tokens, num_requests)
    client = TestClient(app)
    post(client, max_new_tokens=20, guidance_scale=1.5, negative_prompt="The river")
    negative_ids = TOKENIZER.encode("The river").ids
    assert costs == [len(TOKENIZER.encode("Hello").ids) + len(negative_ids) + 40]
    app.state.worker.commands[-1].negative_prompt_ids == negative_ids  # noqa: B015


def test_all_details_are_what_hugging_faces_dataclasses_hold() -> None:
    def script(command: Generate) -> Iterator[Step]:
        ids = [*TOKENIZER.encode("The mill").ids, END_ID]
        prompt = PromptLogprobs([-0.25] * (len(command.prompt_ids) - 1))
        for index in range(2):
            for i, token_id in enumerate(ids):
                top = [[TokenLogprob(token_id, -0.5), TokenLogprob(7, -1.5)]]
                last = i == len(ids) - 1
                yield Tokens(
                    command.request_id,
                    [token_id],
                    "stop" if last else None,
                    [-0.5],
                    None,
                    index,
                    top,
                    prompt if index == i == 0 else None,
                )

    client = client_of(script)
    answer = post(
        client,
        "The river",
        n=2,
        do_sample=True,
        details=True,
        top_n_tokens=2,
        decoder_input_details=True,
        return_parameters=True,
        seed=3,
    )
    output = TextGenerationOutput.parse_obj_as_instance(answer)
    ids = [*TOKENIZER.encode("The mill").ids, END_ID]
    assert output.details is not None and output.details.best_of_sequences is not None
    for sequence in (output.details, *output.details.best_of_sequences):
        assert [token.id for token in sequence.tokens] == ids
        assert sequence.finish_reason == "eos_token" and sequence.seed == 3
        assert sequence.top_tokens is not None
        assert [[top["id"] for top in tops] for tops in sequence.top_tokens] == [[id_, 7] for id_ in ids]
        assert [[top["logprob"] for top in tops] for tops in sequence.top_tokens] == [[-0.5, -1.5]] * len(ids)
        prompt_ids = TOKENIZER.encode("The river").ids
        assert [token.id for token in sequence.prefill] == prompt_ids
        assert [token.logprob for token in sequence.prefill] == [None] + [-0.25] * (len(prompt_ids) - 1)
        assert "".join(token.text for token in sequence.prefill) == "The river"
    parameters = answer["details"]["parameters"]
    assert parameters["seed"] == {"value": 3, "origin": "request"}
    assert parameters["do_sample"] == {"value": True, "origin": "request"}
    assert parameters["max_new_tokens"]["origin"] == "server"


def test_top_tokens_come_with_each_event() -> None:
    def script(command: Generate) -> Iterator[Step]:
        top = [[TokenLogprob(END_ID, -0.5), TokenLogprob(7, -1.5)]]
        yield Tokens(command.request_id, [END_ID], "stop", [-0.5], None, 0, top)

    [event] = post(client_of(script), stream=True, details=True, top_n_tokens=2)
    assert [(top["id"], top["logprob"]) for top in event["top_tokens"]] == [(END_ID, -0.5), (7, -1.5)]
    assert event["token"]["logprob"] == -0.5


def test_a_banned_phrase_that_only_the_text_shows_ends_the_output_before_it() -> None:
    client = client_of(says_each("The river and the MILL runs"))
    answer = post(client, banned_phrases=["mill"], details=True)
    assert answer["generated_text"] == "The river and the "
    assert answer["details"]["finish_reason"] == "banned_phrase"
    events = post(client, stream=True, banned_phrases=["mill"])
    assert "".join(event["token"]["text"] for event in events) == events[-1]["generated_text"] == "The river and the "


def test_the_engines_own_end_before_a_banned_phrase_is_told_with_its_rewinds() -> None:
    def script(command: Generate) -> Iterator[Step]:
        yield Tokens(command.request_id, TOKENIZER.encode("The ").ids, "banned_phrase", num_rewinds=64)

    details = post(client_of(script), banned_phrases=["mill"], details=True)["details"]
    assert (details["finish_reason"], details["num_rewinds"], details["stop"]) == ("banned_phrase", 64, None)


def test_an_end_that_comes_after_its_last_token_is_no_token_of_the_answer() -> None:
    ids = TOKENIZER.encode("The ri").ids

    def script(command: Generate) -> Iterator[Step]:
        yield Tokens(command.request_id, ids, None, [-0.5] * len(ids))
        yield Tokens(command.request_id, [], "banned_phrase", num_rewinds=5)

    for given in ({}, {"stop": ["river"]}):
        answer = post(client_of(script), banned_phrases=["mill"], max_rewinds=4, details=True, **given)
        tokens = answer["details"]["tokens"]
        assert [token["id"] for token in tokens] == ids and answer["details"]["generated_tokens"] == len(ids)
        assert "".join(token["text"] for token in tokens) == answer["generated_text"] == "The ri"


@pytest.mark.parametrize("stream", [False, True])
def test_where_no_token_is_left_the_fields_that_forbid_are_named(stream: bool) -> None:
    def script(command: Generate) -> Iterator[Step]:
        yield NoTokenLeft("The rules forbid every token.")

    client = client_of(script)
    given = {"allowed_token_ids": [9], "bad_words_ids": [[9]], "repetition_penalty": 1.2}
    response = client.post("/generate", json={"inputs": "a", "parameters": given, "stream": stream})
    assert response.status_code == 422
    message = response.json()["error"]["message"]
    assert message.endswith("forbid tokens: bad_words_ids, allowed_token_ids.")
