"""Every option is in range or refused, and whatever is accepted becomes complete parameters."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

import server
from server.api.bodies.schemas import GenerateParameters
from server.errors import InvalidParameter, InvalidRequest, WithoutEffect
from server.length_errors import PromptTooLong
from server.models.describe import DECODER_LENGTHS, GENERATION_FIELDS
from server.protocol import SamplingParams
from server.serving import prompts
from server.serving.options.table import OPTIONS, GenerateOptions
from server.serving.options.values import NEUTRAL
from tests.api.scripted import END_ID, MAX_MODEL_LEN, TOKENIZER, VOCAB_SIZE, front, ready, says
from tests.option_examples import EXAMPLES
from tests.serving import resolving
from tests.serving.resolving import One

RANGES = [name for name, option in OPTIONS.items() if option.range is not None]
UNSUPPORTED = [name for name, option in OPTIONS.items() if option.unsupported is not None]

NAMES = list(OPTIONS)
HINTS = get_type_hints(GenerateOptions)
SERVER = Path(server.__file__).parent


def resolved(parameters: dict[str, Any], **changes: Any) -> One:
    model = ready(**{"generation_config": {"end_token_ids": [END_ID]}, **changes.pop("ready", {})})
    return resolving.resolved(parameters, model, **changes)


# The list of options.


def test_the_schema_and_the_options_have_the_same_fields() -> None:
    assert list(GenerateParameters.model_fields) == NAMES


def test_every_option_has_an_example_or_is_refused() -> None:
    assert {*EXAMPLES, *UNSUPPORTED} == {*NAMES}
    assert all(name in parameters for name, parameters in EXAMPLES.items())


def test_every_option_that_is_no_switch_has_a_range() -> None:
    free = {"rank_by", "grammar", "early_stopping", "logprobs_mode", "adapter_id"}
    switches = {name for name in NAMES if HINTS[name] == bool | None}
    assert {*RANGES} == {*NAMES} - switches - free


def test_the_worker_reads_the_defaults_that_the_front_takes_from_a_model() -> None:
    read = {*GENERATION_FIELDS, *DECODER_LENGTHS}
    assert read == {name for name, option in OPTIONS.items() if option.from_model}


def test_a_neutral_value_is_the_protocols_default() -> None:
    defaults = zip(SamplingParams.__struct_fields__[1:], SamplingParams.__struct_defaults__, strict=True)
    shared = {name: default for name, default in defaults if NEUTRAL.get(name) is not None}
    assert len(shared) > 25
    assert shared == {name: NEUTRAL[name] for name in shared}


READ_BY_THE_FRONT = {
    "truncate",
    "stop",
    "rank_by",
    "n",
    "penalize_template",
    "negative_prompt",
    "grammar",
    "return_full_text",
    "return_parameters",
    "max_time",
}
"""Options that are no part of `SamplingParams`."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_option_is_read_somewhere(name: str) -> None:
    if name in READ_BY_THE_FRONT:
        sources = [path for folder in ("serving", "api") for path in (SERVER / folder).rglob("*.py")]
        read = re.compile(rf"(options|wanted|parameters)\.{name}\b|\"{name}\"")
        assert any(read.search(path.read_text(encoding="utf-8")) for path in sources)
        return
    example = EXAMPLES[name]
    others = {other: value for other, value in example.items() if other != name}
    if name in ("num_beams", "dry_multiplier", "xtc_probability", "details", "banned_phrases", "guidance_scale"):
        others = {}
    try:
        without = resolved(others).params
    except InvalidRequest:  # the others need it
        without = resolved({}).params
    with_it = resolved(example).params
    assert with_it != without or name == "do_sample"


@pytest.mark.parametrize("name", [name for name in SamplingParams.__struct_fields__ if name != "max_new_tokens"])
def test_every_field_of_the_protocol_can_be_reached(name: str) -> None:
    beams_with_stop = {"num_beams": 2, "stop": ["x"]}
    reached = [resolved(parameters).params for parameters in [*EXAMPLES.values(), beams_with_stop]]
    reached.append(resolved({}, grammar="{}").params)
    assert len({repr(getattr(params, name)) for params in reached}) > 1


def test_a_neutral_value_is_as_if_it_were_left_out() -> None:
    plain = resolved({"do_sample": True}).params
    for name, value in NEUTRAL.items():
        if name in NAMES and name not in ("do_sample", "n"):
            assert resolved({name: value, "do_sample": True}).params == plain, name


def test_a_refused_option_is_accepted_with_its_neutral_value() -> None:
    for name, wish in {"penalty_alpha": 0.6, "adapter_id": "a", "watermark": True}.items():
        resolved({name: NEUTRAL.get(name)})
        with pytest.raises(InvalidRequest, match=name):
            resolved({name: wish})


def test_a_request_is_merged_and_resolved_once_for_all_its_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("merge", "resolve"):
        original = getattr(prompts, name)
        monkeypatch.setattr(
            prompts, name, lambda *args, _do=original, **kwargs: calls.append(_do) or _do(*args, **kwargs)
        )
    body = {"inputs": ["a", "b", "c"], "parameters": {"max_new_tokens": 2}}
    response = TestClient(front(says("yes"))).post("/generate", json=body)
    assert response.status_code == 200 and len(response.json()) == 3
    assert [call.__name__ for call in calls] == ["merge", "resolve"]


# Ranges.

NUMBERS = [name for name in RANGES if {int, float} & {*get_args(HINTS[name])}]
HOSTILE = [-0.0, 5e-324, 1e-308, -1e-308, 1e308, 1e-40, 2**31, 2**63 - 1, 2**63, -(2**63), 10**18, math.nan, math.inf]
HOSTILE += [-math.inf, -1, 0, 1, 0.5, 1 - 1e-17, 99]


def accepted_or_refused(parameters: dict[str, Any], **changes: Any) -> SamplingParams | None:
    """Parameters that cross the boundary unharmed, or None for a refusal. Anything else is a failure."""
    try:
        params = resolved(parameters, **changes).params
    except InvalidRequest as error:
        assert error.param in {*NAMES, "inputs"} and error.param.split(".")[-1] in error.message.replace(
            "The input ", "inputs "
        )
        return None
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params
    return params


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_gets_past_its_range(name: str) -> None:
    kinds = get_args(HINTS[name])
    low_enough = {"max_new_tokens": MAX_MODEL_LEN, "truncate": 10**18}
    for value in HOSTILE:
        if float not in kinds and isinstance(value, float):
            continue
        needed = {other: wish for other, wish in EXAMPLES.get(name, {}).items() if other != name}
        params = accepted_or_refused({**needed, name: value})
        if params is not None:
            assert abs(value) <= max(MAX_MODEL_LEN, VOCAB_SIZE) or name in ("seed", *low_enough)
        for field in SamplingParams.__struct_fields__ if params else ():
            told = getattr(params, field)
            assert not isinstance(told, float) or (
                math.isfinite(told) and math.copysign(1, told or 1.0) == (1 if told >= 0 else -1)
            )


def test_a_count_that_is_too_great_is_refused_with_value_and_limit() -> None:
    for name, value, limit in [
        ("n", 9, "8"),
        ("num_return_sequences", 9, "8"),
        ("best_of", 9, "8"),
        ("num_beams", 65, "64"),
        ("top_n_tokens", 21, "20"),
        ("max_rewinds", 1001, "1000"),
        ("penalty_scope", MAX_MODEL_LEN + 1, str(MAX_MODEL_LEN)),
        ("no_repeat_ngram_size", 10**15, str(MAX_MODEL_LEN)),
    ]:
        with pytest.raises(InvalidParameter) as refused:
            resolved({name: value})
        assert name in refused.value.message and str(value) in refused.value.message and limit in refused.value.message


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("logit_bias", {str(i): 1.0 for i in range(301)}, {str(i): 1.0 for i in range(300)}),
        ("logit_bias", {"01": 1}, {"1": 1}),
        ("logit_bias", {"١": 1}, {"1": "-inf"}),
        ("logit_bias", {"": 1}, {}),
        ("logit_bias", {"-1": 1}, {"0": -100}),
        ("logit_bias", {"9" * 4000: 1}, {"9": 100}),
        ("logit_bias", {str(VOCAB_SIZE): 1}, {str(VOCAB_SIZE - 1): 1}),
        ("logit_bias", {"1": True}, {"1": False}),
        ("logit_bias", {"1": 100.5}, {"1": 100.0}),
        ("logit_bias", [[1, 1], [1, 2]], [[1, 1], [2, 2]]),
        ("logit_bias", [[VOCAB_SIZE, 1]], [[0, False]]),
        ("sequence_bias", [[[1], 1.0]] * 2, [[[1], 1.0], [[2], 1.0]]),
        ("sequence_bias", [[[], 1.0]], [[[1] * 32, 1.0]]),
        ("sequence_bias", [[[1] * 33, 1.0]], [[[1], -100]]),
        ("sequence_bias", [[[1], 101]], [[[1], "-inf"]]),
        ("sequence_bias", [[[1, i], 1.0] for i in range(129)], [[[1, i], 1.0] for i in range(128)]),
        ("bad_words_ids", [[VOCAB_SIZE]], [[0]]),
        ("bad_words_ids", [[2**63]], [[1, 2]]),
        ("allowed_token_ids", [], [1]),
        ("allowed_token_ids", [-1], [0]),
        ("suppress_tokens", [2**31], []),
        ("suppress_tokens", [0] * (VOCAB_SIZE + 1), [0] * VOCAB_SIZE),
        ("forced_bos_token_id", VOCAB_SIZE, 0),
        ("forced_eos_token_id", [], 0),
        ("eos_token_id", -1, [1, 2]),
        ("exponential_decay_length_penalty", [-1, 1.1], [0, 1.1]),
        ("exponential_decay_length_penalty", [1, 0.0], [1, 100]),
        ("exponential_decay_length_penalty", [1, 1e-308], [1, 0.01]),
        ("banned_phrases", ["  "], [" a "]),
        ("banned_phrases", ["a"] * 65, ["a"] * 64),
        ("banned_phrases", ["a" * 257], ["a" * 256]),
        ("bad_words", [""], ["a"]),
        ("penalties", [{"phrase": "a", "topic": "b", "strength": 1}], [{"phrase": "a", "strength": 1}]),
        ("penalties", [{"strength": 1}], [{"phrase": "a", "strength": 0}]),
        ("penalties", [{"phrase": "a", "strength": -1}], [{"phrase": "a", "strength": 100}]),
        ("penalties", [{"phrase": " ", "strength": 1}], []),
        ("penalties", [{"phrase": "a", "strength": 1}] * 65, [{"phrase": "a", "strength": 1}] * 64),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_list_is_checked_entry_by_entry(name: str, wrong: Any, right: Any) -> None:
    with pytest.raises(InvalidParameter) as refused:
        resolved({name: wrong})
    assert refused.value.param == name and len(refused.value.message) < 400
    resolved({name: right})


def test_outputs_that_could_not_run_together_are_refused() -> None:
    few = {"ready": {"max_running": 3}}
    for parameters, name in [
        ({"num_beams": 4}, "num_beams"),
        ({"n": 4, "do_sample": True}, "n"),
        ({"best_of": 4, "do_sample": True}, "best_of"),
        ({"n": 2, "do_sample": True, "guidance_scale": 2}, "guidance_scale"),
    ]:
        with pytest.raises(InvalidParameter) as refused:
            resolved(parameters, **few)
        assert refused.value.param == name and "max_running" in refused.value.message
        assert any(f"{count} is" in refused.value.message for count in ("num_beams", "n", "best_of"))
    assert resolved({"n": 3, "do_sample": True}, **few).params.num_return_sequences == 3


def test_end_tokens_cannot_grow_likelier_where_there_are_none() -> None:
    decay, endless = {"exponential_decay_length_penalty": [2, 1.5]}, {"ready": {"generation_config": {}}}
    with pytest.raises(WithoutEffect) as refused:
        resolved(decay, **endless)
    assert refused.value.fields == ("exponential_decay_length_penalty", "eos_token_id")
    for ends in ({"eos_token_id": 5}, {"stop_token_ids": [5]}):
        assert resolved({**decay, **ends}, **endless).params.exponential_decay_length_penalty == (2, 1.5)
    mine = resolved({}, ready={"generation_config": decay})
    assert mine.params.exponential_decay_length_penalty is None and not mine.origins.keys() & decay.keys()


def test_a_least_length_beyond_the_greatest_names_both() -> None:
    for parameters, names in [
        ({"min_length": 30, "max_new_tokens": 5}, ("min_length", "max_new_tokens")),
        ({"min_new_tokens": 30, "max_length": 20}, ("min_new_tokens", "max_length")),
    ]:
        with pytest.raises(InvalidParameter) as refused:
            resolved(parameters)
        assert all(name in refused.value.message for name in names)


# Values become parameters.


def test_bans_and_amounts_are_put_together() -> None:
    params = resolved(
        {
            "logit_bias": {"1": False, "2": "-inf", "3": -2},
            "sequence_bias": [[[1, 2], 4], [[3], False]],
            "bad_words_ids": [[1, 2], [5]],
        }
    ).params
    assert params.logit_bias == {1: -math.inf, 2: -math.inf, 3: -2.0}
    assert dict(params.sequence_bias) == {(1, 2): -math.inf, (3,): -math.inf, (5,): -math.inf}
    assert resolved({"logit_bias": [[1, False], [3, -2]]}).params.logit_bias == {1: -math.inf, 3: -2.0}


def test_a_bad_word_is_banned_alone_and_after_a_space() -> None:
    banned = dict(resolved({"bad_words": ["mill"]}).params.sequence_bias)
    for text in ("mill", " mill"):
        assert banned[tuple(TOKENIZER.encode(text, add_special_tokens=False).ids)] == -math.inf


def test_a_repetition_breaks_at_every_token_that_holds_a_breaker() -> None:
    ids = resolved({"dry_multiplier": 1, "dry_sequence_breakers": ["e"]}).params.dry_breaker_ids
    assert ids and all("e" in TOKENIZER.token_text(token_id) for token_id in ids)
    assert len(ids) == sum("e" in TOKENIZER.token_text(token_id) for token_id in range(VOCAB_SIZE))
    assert resolved({"dry_multiplier": 1}).params.dry_breaker_ids
    assert resolved({"dry_multiplier": 1, "dry_sequence_breakers": []}).params.dry_breaker_ids == ()
    with pytest.raises(InvalidParameter, match="dry_sequence_breakers"):
        resolved({"dry_multiplier": 1, "dry_sequence_breakers": ["no token has this"]})


def test_topics_are_penalised_by_their_phrases() -> None:
    penalties = [{"topic": "mills", "strength": 2}, {"phrase": "wind", "strength": 1}, {"phrase": "x", "strength": 0}]
    params = resolved({"penalties": penalties}, topics={"mills": ["mill", "wind"]}).params
    assert dict(params.phrase_penalties) == {"mill": 2.0, "wind": 3.0}
    with pytest.raises(InvalidParameter, match="not a topic of this server: mills"):
        resolved({"penalties": [{"topic": "boats", "strength": 2}]}, topics={"mills": ["mill"]})


def test_the_parameters_show_penalties_as_they_were_sent() -> None:
    penalties = [{"phrase": "the mill", "strength": 4.0}, {"topic": "boats", "strength": 1.0}]
    shown = resolved({"penalties": penalties}, topics={"boats": ["boat"]}).parameters()
    assert shown["penalties"] == {"value": penalties, "origin": "request"}


def test_lengths_of_prompt_and_output_together_count_the_prompt() -> None:
    params = resolved({"max_length": 20, "min_length": 9}).params
    assert (params.max_new_tokens, params.min_new_tokens) == (15, 4)
    assert resolved({"min_length": 3}).params.min_new_tokens == 0
    with pytest.raises(InvalidParameter, match="max_length is 5: it must be more than the input's 5 tokens"):
        resolved({"max_length": 5})
    with pytest.raises(InvalidParameter, match="min_length is 40: it must be at most 21"):
        resolved({"min_length": 40})
    with pytest.raises(PromptTooLong):
        resolved({}, num_prompt_tokens=MAX_MODEL_LEN)


def test_a_draw_that_does_not_take_place_has_no_rules() -> None:
    params = resolved({"temperature": 0, "top_p": 0.5, "xtc_probability": 1, "min_p": 0.1}).params
    assert params == resolved({}).params


def test_stop_strings_go_to_the_engine_with_beams_only() -> None:
    assert resolved({"stop": ["a"]}).params.stop_strings == ()
    assert resolved({"stop": "a", "num_beams": 2}).params.stop_strings == ("a",)


# All at once.


def _value_of(name: str) -> st.SearchStrategy[Any]:
    """The example's value, a neutral one, and values that are just wrong."""
    known = [EXAMPLES[name][name]] if name in EXAMPLES else []
    strategies = [st.sampled_from([value for value in [*known, NEUTRAL.get(name)] if value is not None] or [None])]
    kinds = get_args(HINTS[name])
    if int in kinds:
        strategies.append(st.integers(-2, 200) | st.integers())
    if float in kinds:
        strategies.append(st.floats() | st.floats(-3, 3))
    if bool in kinds:
        strategies.append(st.booleans())
    if name in ("stop_token_ids", "suppress_tokens", "allowed_token_ids", "begin_suppress_tokens", "eos_token_id"):
        strategies.append(st.lists(st.integers(-1, VOCAB_SIZE), max_size=4))
    if name in ("stop", "banned_phrases", "bad_words"):
        strategies.append(st.lists(st.text(max_size=6), max_size=3))
    return st.one_of(strategies)


ANY_PARAMETERS = st.lists(st.sampled_from(NAMES), max_size=8, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: _value_of(name) for name in names})
)


@settings(max_examples=600, deadline=None)
@given(ANY_PARAMETERS, ANY_PARAMETERS, st.integers(1, MAX_MODEL_LEN + 2))
def test_any_parameters_become_complete_ones_or_a_refusal(
    parameters: dict[str, Any], defaults: dict[str, Any], num_prompt_tokens: int
) -> None:
    defaults = {"end_token_ids": [END_ID], **defaults}
    params = accepted_or_refused(parameters, num_prompt_tokens=num_prompt_tokens, ready={"generation_config": defaults})
    if params is not None:
        assert 1 <= params.max_new_tokens <= MAX_MODEL_LEN - num_prompt_tokens
        assert 0 <= params.min_new_tokens <= params.max_new_tokens
        assert params.num_beams % params.num_beam_groups == 0
        assert params.num_beams == 1 or params.num_return_sequences <= params.num_beams
