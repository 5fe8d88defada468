"""Every field of a body is honoured, refused by name, or named as left out; none disappears."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from server.api.dialects.openai.bodies import REFUSED_IN_CHAT, REFUSED_IN_COMPLETIONS, ChatBody
from server.api.text.schemas import TOLD_OTHERWISE
from server.protocol import Generate, Tokens
from tests.api.openai.fronts import CHAT, COMPLETIONS, HELLO, MAX_MODEL_LEN, TEXT, Front, fronted
from tests.api.scripted import END_ID, TOKENIZER, Step
from tests.option_examples import EXAMPLES, NEEDS_MORE

HEADER = "x-ignored-fields"
BODIES = {COMPLETIONS: {"prompt": "Hello"}, CHAT: HELLO}
BOTH = pytest.mark.parametrize("path", [COMPLETIONS, CHAT])


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with fronted(says_in_all_outputs) as front:
        yield front


def says_in_all_outputs(command: Generate) -> Iterator[Step]:
    ids = [*TOKENIZER.encode(TEXT).ids, END_ID][: command.params.max_new_tokens]
    logprobs = [-1.0] * len(ids) if command.params.logprobs else None
    finish = "stop" if ids[-1] == END_ID else "length"
    outputs = range(command.params.num_return_sequences)
    yield [Tokens(command.request_id, ids, finish, logprobs, index=index) for index in outputs]


@BOTH
def test_unknown_fields_are_left_out_and_named_also_those_within_others(front: Front, path: str) -> None:
    response = front.send(path, **BODIES[path], wizard=1, user="me", stream=True, stream_options={"shiny": True})
    assert response.headers[HEADER] == "wizard, user, stream_options.shiny"
    response = front.send(CHAT, messages=[{"role": "user", "content": "a", "mood": "b"}] * 2)
    assert response.headers[HEADER] == "messages.mood"


@BOTH
def test_null_is_absent_in_every_field(front: Front, path: str) -> None:
    names = {*ChatBody.model_fields, "suffix", "echo", "user", "wizard"} - {"messages"}
    response = front.send(path, **BODIES[path], **dict.fromkeys(names))
    assert HEADER not in response.headers
    assert front.command.params.do_sample and front.command.params.temperature == 1.0


@BOTH
def test_a_field_that_asks_for_nothing_is_not_called_ignored(front: Front, path: str) -> None:
    body = {**BODIES[path], "store": False, "n": 1, "presence_penalty": 0, "logit_bias": {}, "stop": []}
    assert HEADER not in front.send(path, **body).headers


def test_names_of_ignored_fields_cannot_write_headers(front: Front) -> None:
    response = front.send(COMPLETIONS, prompt="a", **{"a\r\nset-cookie: b": 1, "磨": 2, "c" * 100: 3})
    assert response.headers[HEADER] == f"a%0D%0Aset-cookie%3A%20b, %E7%A3%A8, {'c' * 64}"
    assert "set-cookie" not in response.headers
    many = front.send(COMPLETIONS, prompt="a", **{f"x{i}": i for i in range(100)})
    assert len(many.headers[HEADER].split(", ")) == 32


@BOTH
def test_strict_refuses_what_would_be_left_out(path: str) -> None:
    with fronted(strict=True) as front:
        error = front.refused(path, **BODIES[path], wizard=1)
        assert (error.param, error.code) == ("wizard", "unknown_parameter")
        assert front.send(path, **BODIES[path], wizard=None).status_code == 200


REFUSALS = [(CHAT, name) for name in REFUSED_IN_CHAT] + [(COMPLETIONS, name) for name in REFUSED_IN_COMPLETIONS]


@pytest.mark.parametrize(("path", "name"), REFUSALS)
def test_a_field_that_cannot_be_honoured_is_refused_by_name_and_its_default_is_taken(
    front: Front, path: str, name: str
) -> None:
    refusals = REFUSED_IN_CHAT if path == CHAT else REFUSED_IN_COMPLETIONS
    error = front.refused(path, **BODIES[path], **{name: "something else"})
    assert (error.param, error.code) == (name, "unsupported_value")
    for value in refusals[name].neutral:
        assert HEADER not in front.send(path, **BODIES[path], **{name: value}).headers


@pytest.mark.parametrize("name", TOLD_OTHERWISE)
def test_our_options_for_what_is_told_have_no_place_here_and_say_what_has(front: Front, name: str) -> None:
    example = EXAMPLES[name][name]
    assert front.refused(COMPLETIONS, prompt="a", **{name: example}).param == name
    neutral = 0 if name == "top_n_tokens" else False
    assert front.send(COMPLETIONS, prompt="a", **{name: neutral}).status_code == 200


SAME_HERE = [
    name for name in EXAMPLES if name not in {*TOLD_OTHERWISE, *NEEDS_MORE, "logprobs_mode", "logprob_token_ids"}
]


@pytest.mark.parametrize("name", SAME_HERE)
def test_every_decoding_option_of_ours_does_here_what_it_does_on_the_native_route(front: Front, name: str) -> None:
    options = {"seed": 3, **EXAMPLES[name]}
    if not any(option in options for option in ("do_sample", "num_beams", "temperature")):
        options["do_sample"] = name in SHAPES_THE_DRAW
    if name == "penalize_template":
        front.send("/generate", **HELLO, parameters=options)
        wanted = front.command
        front.send(CHAT, **HELLO, **options)
    else:
        front.send("/generate", inputs="Hello", parameters=options)
        wanted = front.command
        front.send(COMPLETIONS, prompt="Hello", **options)
    assert front.command.params == wanted.params
    assert front.command.prompt_ids == wanted.prompt_ids
    assert front.command.negative_prompt_ids == wanted.negative_prompt_ids
    assert front.command.template_spans == wanted.template_spans


SHAPES_THE_DRAW = {
    "top_n_sigma",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "xtc_probability",
    "xtc_threshold",
}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"max_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_completion_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_completion_tokens": 5, "max_tokens": 5}, {"max_new_tokens": 5}),
        ({"min_tokens": 4}, {"min_new_tokens": 4}),
        ({"truncate_prompt_tokens": 4}, {"truncate": 4}),
        ({"top_k": -1}, {"top_k": 0, "do_sample": True}),
        ({"guided_regex": "[a-z]+"}, {"grammar": {"type": "regex", "value": "[a-z]+"}}),
        ({"guided_choice": ["a", "b"]}, {"grammar": {"type": "choice", "value": ["a", "b"]}}),
        ({"guided_json": {"type": "object"}}, {"grammar": {"type": "json", "value": {"type": "object"}}}),
        ({"structured_outputs": {"regex": "a+"}}, {"grammar": {"type": "regex", "value": "a+"}}),
        ({"structured_outputs": {"choice": ["a"]}}, {"grammar": {"type": "choice", "value": ["a"]}}),
        (
            {"structured_outputs": {"json": {"type": "array"}}},
            {"grammar": {"type": "json", "value": {"type": "array"}}},
        ),
        ({"structured_outputs": {"json_object": True}}, {"grammar": {"type": "json_object"}}),
    ],
)
@BOTH
def test_names_of_openais_and_vllms_mean_the_same_here(
    front: Front, path: str, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    common = {"seed": 1, "temperature": 0.5}
    front.send(path, **BODIES[path], **common, **theirs)
    params = front.command.params
    front.send(path, **BODIES[path], **common, **ours)
    assert params == front.command.params


def test_two_names_of_one_option_that_disagree_are_refused(front: Front) -> None:
    error = front.refused(CHAT, max_tokens=5, max_completion_tokens=6, **HELLO)
    assert error.param == "max_tokens" and "max_completion_tokens" in error.message


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_new_tokens"])
def test_errors_name_an_option_as_the_client_did(front: Front, name: str) -> None:
    error = front.refused(CHAT, **{name: MAX_MODEL_LEN}, **HELLO)
    assert error.param == name and error.message.startswith(f"{name} is {MAX_MODEL_LEN}:")


def test_a_text_is_drawn_at_temperature_one_unless_somebody_says_otherwise(front: Front) -> None:
    def drawn(**options: Any) -> tuple[bool, float]:
        front.send(CHAT, **HELLO, **options)
        return front.command.params.do_sample, front.command.params.temperature

    assert drawn() == (True, 1.0)
    assert drawn(top_p=0.5) == (True, 1.0)
    assert drawn(temperature=0.3) == (True, 0.3)
    assert drawn(temperature=0)[0] is drawn(do_sample=False)[0] is drawn(num_beams=2)[0] is False


def test_what_the_models_own_configuration_says_comes_before_openais_default() -> None:
    for says, wanted in (({"do_sample": False}, (False, 1.0)), ({"do_sample": True, "temperature": 0.6}, (True, 0.6))):
        with fronted(generation_config=says) as front:
            front.send(CHAT, **HELLO)
            assert (front.command.params.do_sample, front.command.params.temperature) == wanted


@pytest.mark.parametrize("name", ["tiny", "dummy", "tgi", "", None])
def test_the_words_that_clients_must_send_mean_the_default_model(front: Front, name: str | None) -> None:
    for path in (COMPLETIONS, CHAT):
        assert front.post(path, model=name, **BODIES[path]).model == "tiny"


@BOTH
def test_another_model_is_a_404_that_lists_what_is_served(front: Front, path: str) -> None:
    error = front.refused(path, 404, model="gpt-4", **BODIES[path])
    assert (error.code, error.param) == ("model_not_found", "model")
    assert "gpt-4" in error.message and "Served: tiny" in error.message


def test_below_v1_a_wrong_body_is_a_400_and_on_native_routes_a_422(front: Front) -> None:
    assert front.refused(CHAT, messages=5).param == "messages"
    assert front.refused(CHAT, temperature=-1, **HELLO).param == "temperature"
    assert front.refused("/generate", 422, inputs=5).param == "inputs"
    assert front.refused("/generate", 422, inputs="a", parameters={"temperature": -1}).code == "invalid_value"


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/audio/speech", "/v1/images/generations", "/v1/"])
def test_an_unknown_path_below_v1_is_a_404_in_the_envelope(front: Front, path: str) -> None:
    assert front.refused(path, 404, a=1).code == "not_found"


def test_bodies_that_are_no_json_are_a_400_in_the_envelope(front: Front) -> None:
    response = front.client.post(CHAT, content=b"{", headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
    assert front.client.get(CHAT).status_code == 405


def test_the_request_id_is_the_clients_own_and_on_errors_too(front: Front) -> None:
    headers = {"x-request-id": "mine-1"}
    assert front.client.post(CHAT, json=HELLO, headers=headers).headers["x-request-id"] == "mine-1"
    assert front.client.post(CHAT, json={}, headers=headers).json()["error"]["request_id"] == "mine-1"


def test_what_langchains_completions_always_send_is_taken(front: Front) -> None:
    """A list, and the defaults written out."""
    answer = front.post(
        COMPLETIONS,
        model="tiny",
        prompt=["Hello"],
        frequency_penalty=0,
        logit_bias=None,
        logprobs=None,
        max_tokens=20,
        n=1,
        presence_penalty=0,
        seed=None,
        temperature=0.7,
        top_p=1,
    )
    assert answer.choices[0].text == TEXT


def test_what_benchmarks_send_is_taken_and_ignore_eos_holds(front: Front) -> None:
    """guidellm, aiperf and vLLM's own."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"max_completion_tokens": 8, "ignore_eos": True, "stop": None, "stream_options": options}
    chunks = front.stream(CHAT, **HELLO, **body)
    assert front.command.params.ignore_eos and chunks[-1].usage.completion_tokens == 8
    assert chunks[-2].choices[0].finish_reason == "length"


def test_the_documentation_has_the_bodies_with_their_fields(front: Front) -> None:
    schemas = front.client.get("/openapi.json").json()["components"]["schemas"]
    for body, field in (("ChatBody", "tools"), ("CompletionBody", "echo"), ("ChatBody", "num_beams")):
        assert field in schemas[body]["properties"]


OF_ALL_DIALECTS = [
    (COMPLETIONS, {"prompt": "Hello"}),
    (CHAT, HELLO),
    ("/v1/responses", {"input": "Hello"}),
    ("/v1/messages", {"max_tokens": 4, **HELLO}),
]
OWN_WORDS = ["order details", "top_n_tokens", "inputs", "stop", "do_sample", "grammar", "max_new_tokens", "messages"]


@pytest.mark.parametrize(("path", "body"), OF_ALL_DIALECTS)
@pytest.mark.parametrize("word", OWN_WORDS)
def test_a_clients_data_stands_in_messages_as_it_was_sent(
    front: Front, path: str, body: dict[str, Any], word: str
) -> None:
    too_many = [word] * 40
    assert json.dumps(too_many)[:50] in front.refused(path, **{**body, "stop": too_many}).message
    assert f'"{word}"' in front.refused(path, **{**body, "penalties": [{"phrase": word, "strength": 999}]}).message
    assert word in front.refused(path, **{**body, "grammar": {"type": word}}).message


@pytest.mark.parametrize(("path", "body"), OF_ALL_DIALECTS)
def test_a_message_blames_no_field_that_was_not_sent(front: Front, path: str, body: dict[str, Any]) -> None:
    error = front.refused(path, **{**body, "temperature": 0, "best_of": 2})
    assert "temperature" in error.message and "do_sample" not in error.message


@pytest.mark.parametrize(("path", "body"), OF_ALL_DIALECTS)
def test_a_cache_salt_keeps_prefixes_apart_in_every_dialect(front: Front, path: str, body: dict[str, Any]) -> None:
    front.send(path, **body, cache_salt="mine")
    assert front.command.cache_salt == "mine"
    error = front.refused(path, **body, cache_salt="a" * 65)
    assert error.param == "cache_salt"


TOO_LONG = "word " * (MAX_MODEL_LEN + 1)
CONTEXT_WORDS = f"this model's maximum context length is {MAX_MODEL_LEN} tokens"
"""litellm, which gateways and agents use, tells an input that is too long by these words."""


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, {"prompt": TOO_LONG}),
        (CHAT, {"messages": [{"role": "user", "content": TOO_LONG}]}),
        ("/v1/responses", {"input": TOO_LONG}),
        ("/v1/messages", {"max_tokens": 4, "messages": [{"role": "user", "content": TOO_LONG}]}),
    ],
)
def test_a_prompt_that_is_too_long_is_told_in_the_words_that_clients_know(
    front: Front, path: str, body: dict[str, Any]
) -> None:
    error = front.refused(path, **body)
    assert error.code == "context_length_exceeded" and error.param in body
    assert CONTEXT_WORDS in error.message and "prompt is too long" in error.message


@pytest.mark.parametrize(("path", "body"), OF_ALL_DIALECTS)
def test_a_prompt_and_an_output_that_are_too_long_together_are_told_as_such(
    front: Front, path: str, body: dict[str, Any]
) -> None:
    name = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    error = front.refused(path, **{**body, name: MAX_MODEL_LEN})
    assert (error.code, error.param) == ("context_length_exceeded", name)
    assert CONTEXT_WORDS in error.message and error.message.startswith(f"{name} is {MAX_MODEL_LEN}: ")
