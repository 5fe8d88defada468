"""Every rule between two fields is found, names both, and holds between the layers as it should."""

from __future__ import annotations

from typing import Any

import pytest

from server.errors import ConflictingParameters, InvalidParameter, WithoutEffect
from server.serving.generator import ServedGenerator
from server.serving.options.reading import model_defaults
from server.serving.options.rules import BODY_FIELDS, RULES, SYNONYMS
from tests.api.scripted import END_ID, front, ready, says
from tests.option_examples import EXAMPLES
from tests.serving.resolving import One, checked, resolved

BROKEN: dict[tuple[str, str], dict[str, Any]] = {
    ("min_new_tokens", "max_new_tokens"): {"min_new_tokens": 9, "max_new_tokens": 8},
    ("min_length", "max_length"): {"min_length": 17, "max_length": 16},
    ("num_return_sequences", "num_beams"): {"num_return_sequences": 3, "num_beams": 2},
    ("best_of", "do_sample"): {"best_of": 2},
    ("best_of", "num_return_sequences"): {"best_of": 2, "num_return_sequences": 3, "do_sample": True},
    ("num_beam_groups", "num_beams"): {"num_beam_groups": 2, "num_beams": 3, "diversity_penalty": 1.0},
    ("num_beam_groups", "diversity_penalty"): {"num_beam_groups": 2, "num_beams": 4},
    ("num_beam_groups", "do_sample"): {**EXAMPLES["num_beam_groups"], "do_sample": True},
    ("diversity_penalty", "num_beam_groups"): {"diversity_penalty": 1.0, "num_beams": 4},
    ("penalize_template", "repetition_penalty"): {"penalize_template": False, "presence_penalty": 1.0},
    ("penalize_template", "template"): EXAMPLES["penalize_template"],
    ("forced_bos_token_id", "suppress_tokens"): {"forced_bos_token_id": 9, "suppress_tokens": [9]},
    ("forced_bos_token_id", "allowed_token_ids"): {"forced_bos_token_id": 9, "allowed_token_ids": [8]},
    ("forced_bos_token_id", "logit_bias"): {"forced_bos_token_id": 9, "logit_bias": {"9": False}},
    ("forced_bos_token_id", "bad_words_ids"): {"forced_bos_token_id": 9, "bad_words_ids": [[9]]},
    ("forced_eos_token_id", "suppress_tokens"): {"forced_eos_token_id": [5], "suppress_tokens": [5]},
    ("forced_eos_token_id", "allowed_token_ids"): {"forced_eos_token_id": [5], "allowed_token_ids": [8]},
    ("allowed_token_ids", "suppress_tokens"): {"allowed_token_ids": [8], "suppress_tokens": [8, 9]},
    ("num_beams", "max_rewinds"): {"num_beams": 4, **EXAMPLES["max_rewinds"]},
    ("grammar", "min_length"): {**EXAMPLES["grammar"], "min_length": 20},
    ("best_of", "stream"): EXAMPLES["best_of"],
    ("decoder_input_details", "stream"): EXAMPLES["decoder_input_details"],
}
"""Parameters that break a rule, where the two fields' own examples do not."""
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("inputs", "template"): {"inputs": "a", "template": "b"},
    ("inputs", "messages"): {"inputs": "a", "messages": []},
    ("template", "messages"): {"template": "a", "messages": []},
    ("variables", "template"): {"inputs": "a", "variables": {"x": 1}},
    ("examples", "template"): {"inputs": "a", "examples": [{"x": 1}]},
    ("chat_template_kwargs", "messages"): {"inputs": "a", "chat_template_kwargs": {"x": 1}},
    ("stream", "inputs"): {"inputs": ["a"], "stream": True},
    ("best_of", "stream"): {"inputs": "a", "stream": True},
    ("decoder_input_details", "stream"): {"inputs": "a", "stream": True},
}


def parameters_that_break(first: str, second: str, has_no_effect: bool) -> dict[str, Any]:
    if (first, second) == ("temperature", "do_sample") and not has_no_effect:
        return {"temperature": 0.0, "do_sample": True}
    if (first, second) == ("num_beam_groups", "num_beams") and has_no_effect:
        return {"num_beam_groups": 2}
    if (first, second) in BROKEN:
        return BROKEN[first, second]
    if first in BODY_FIELDS:
        return {}
    alone = {first: EXAMPLES[first][first]}
    if second == "do_sample":
        return {**EXAMPLES[first], "do_sample": False}
    return alone if has_no_effect else {**alone, **EXAMPLES[second]}


CASES = [(rule.first, rule.second, rule.has_no_effect, rule.words) for rule in RULES]
CASES += [(first, second, False, reason) for first, second, reason in SYNONYMS]


@pytest.mark.parametrize(("first", "second", "has_no_effect", "words"), CASES, ids=lambda value: str(value)[:20])
def test_every_rule_refuses_by_naming_the_fields_that_were_sent(
    first: str, second: str, has_no_effect: bool, words: str
) -> None:
    parameters, body = parameters_that_break(first, second, has_no_effect), BODIES.get((first, second), {"inputs": "a"})
    with pytest.raises(ConflictingParameters) as refused:
        checked(parameters, ready(), body)
    assert refused.value.fields == (first, second)
    blamed = refused.value.message.partition(": ")[0].split()
    assert first in blamed and (second in blamed) is (second in {*parameters, *body})
    assert refused.value.param == first and refused.value.message.endswith(".")
    assert words.split()[-1] in refused.value.message
    assert (type(refused.value) is WithoutEffect) == has_no_effect


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 0, "top_p": 0.5, "top_k": 3},
        {"do_sample": False, "temperature": 0.0},
        {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "num_beams": 1, "length_penalty": 1.0},
        {"num_beams": 4, "do_sample": True, "num_return_sequences": 4},
        {"num_beams": 4, "temperature": 0.7, "top_k": 5},
        {"n": 8, "top_p": 0.9},
        {"best_of": 3, "n": 3, "do_sample": True},
        {"forced_bos_token_id": 9, "begin_suppress_tokens": [9]},
        {"forced_bos_token_id": 9, "logit_bias": {"9": 0}},
        {"forced_eos_token_id": [5, 6], "suppress_tokens": [5]},
        {"allowed_token_ids": [8, 9], "suppress_tokens": [8]},
        {"exponential_decay_length_penalty": [2, 1.5], "ignore_eos": True, "stop_token_ids": [4]},
        {**EXAMPLES["grammar"], "banned_phrases": ["a"], "num_beams": 2, "allowed_token_ids": [8]},
    ],
    ids=str,
)
def test_what_no_rule_forbids_is_accepted(parameters: dict[str, Any]) -> None:
    checked(parameters, ready(), {"inputs": "a"})


def test_a_field_is_named_as_the_client_wrote_it() -> None:
    with pytest.raises(ConflictingParameters, match=r"^n and num_beams"):
        checked({"n": 3, "num_beams": 2}, ready())
    with pytest.raises(ConflictingParameters, match=r"^num_return_sequences and num_beams"):
        checked({"num_return_sequences": 3, "num_beams": 2}, ready())
    with pytest.raises(ConflictingParameters, match=r"^best_of and temperature cannot be combined"):
        checked({"best_of": 2, "temperature": 0.0}, ready())


# Between the layers.


def layered(request: dict[str, Any], template: dict[str, Any] | None = None, **model: Any) -> One:
    return resolved(request, ready(generation_config={"end_token_ids": [END_ID], **model}), template=template)


def test_the_request_comes_before_the_template_and_that_before_the_model() -> None:
    found = layered({"top_k": 1}, {"top_k": 2, "top_p": 0.5}, top_k=3, top_p=0.6, min_p=0.7, do_sample=True)
    assert (found.params.top_k, found.params.top_p, found.params.min_p) == (1, 0.5, 0.7)
    assert found.parameters() == {
        "top_k": {"value": 1, "origin": "request"},
        "top_p": {"value": 0.5, "origin": "template"},
        "min_p": {"value": 0.7, "origin": "model"},
        "do_sample": {"value": True, "origin": "request"},
        "max_new_tokens": {"value": 16, "origin": "server"},
        "seed": {"value": 3, "origin": "server"},
        "eos_token_id": {"value": (END_ID,), "origin": "model"},
    }


def test_an_empty_list_and_a_neutral_value_undo_a_default() -> None:
    found = layered({"suppress_tokens": [], "repetition_penalty": 1.0}, suppress_tokens=[4], repetition_penalty=2.0)
    assert found.params.suppress_tokens == () and found.params.repetition_penalty == 1.0
    assert not {"suppress_tokens", "repetition_penalty"} & {*found.parameters()}


@pytest.mark.parametrize(
    ("request_", "model", "expected"),
    [
        ({"do_sample": False}, {"do_sample": True, "temperature": 0.6}, {"do_sample": False, "temperature": 1.0}),
        ({"temperature": 0}, {"do_sample": True, "top_p": 0.6}, {"do_sample": False, "top_p": 1.0}),
        ({}, {"temperature": 0.6, "top_p": 0.5}, {"do_sample": False, "temperature": 1.0}),
        ({"top_p": 0.9}, {"temperature": 0.6}, {"do_sample": True, "temperature": 0.6, "top_p": 0.9}),
        ({}, {"length_penalty": 2.0, "early_stopping": True}, {"length_penalty": 1.0, "early_stopping": False}),
        ({"num_beams": 2}, {"length_penalty": 2.0}, {"length_penalty": 2.0, "num_beams": 2}),
        ({"best_of": 2, "do_sample": True}, {"num_beams": 4}, {"num_beams": 1, "num_return_sequences": 2}),
        ({"max_length": 10}, {"max_new_tokens": 7}, {"max_new_tokens": 5}),
        ({"max_new_tokens": 3}, {"min_new_tokens": 7}, {"max_new_tokens": 3, "min_new_tokens": 0}),
        ({"forced_bos_token_id": 9}, {"suppress_tokens": [9]}, {"forced_bos_token_id": 9, "suppress_tokens": ()}),
        ({}, {"bad_words_ids": [[4]]}, {"sequence_bias": (((4,), float("-inf")),)}),
        ({}, {"num_return_sequences": 4, "max_length": 9, "min_length": 9}, {"num_return_sequences": 1}),
        ({}, {"forced_eos_token_id": 5}, {"forced_eos_token_ids": (5,)}),
    ],
    ids=str,
)
def test_a_default_of_the_models_yields(
    request_: dict[str, Any], model: dict[str, Any], expected: dict[str, Any]
) -> None:
    params = layered(request_, **model).params
    assert {name: getattr(params, name) for name in expected} == expected


def test_a_template_is_never_undone_by_a_conflict_but_refused_by_name() -> None:
    template = {"banned_phrases": ["a"], "max_rewinds": 3}
    with pytest.raises(ConflictingParameters, match=r"num_beams and max_rewinds .* the template sets max_rewinds"):
        layered({"num_beams": 2}, template)


def test_what_one_template_lacks_another_may_bring() -> None:
    checked({"max_rewinds": 3}, ready(), {"template": "a"})
    assert layered({"max_rewinds": 3}, {"banned_phrases": ["a"]}).params.max_rewinds == 3
    with pytest.raises(WithoutEffect, match="max_rewinds has no effect: set banned_phrases"):
        layered({"max_rewinds": 3}, {"top_k": 1})


def test_what_the_request_leaves_without_effect_in_a_template_is_dropped() -> None:
    found = layered({"do_sample": False}, {"temperature": 0.5, "num_beams": 2})
    assert found.params.do_sample is False and found.params.num_beams == 2
    assert "temperature" not in found.parameters()


def test_another_name_for_one_thing_is_one_wish() -> None:
    found = layered({"max_new_tokens": 4, "n": 2, "do_sample": True}, {"max_length": 90, "num_return_sequences": 3})
    assert found.params.max_new_tokens == 4 and found.params.num_return_sequences == 2
    assert found.parameters()["num_return_sequences"] == {"value": 2, "origin": "request"}
    found = layered({"num_return_sequences": 2, "do_sample": True}, {"n": 3})
    assert found.params.num_return_sequences == 2


@pytest.mark.parametrize(
    "template", [{"top_q": 1}, {"top_k": "3"}, {"top_p": 2}, {"stop": [1]}, {"watermark": True}], ids=str
)
def test_a_wrong_value_of_a_template_is_refused_by_name(template: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=next(iter(template))) as refused:
        layered({}, template)
    assert isinstance(refused.value, InvalidParameter) or "not supported" in str(refused.value)


def test_an_unsound_default_of_the_models_is_left_out_and_told() -> None:
    config = {"temperature": -1, "top_k": 10**9, "suppress_tokens": [-4], "sequence_bias": [[[1]]], "top_p": 0.5}
    values, problems = model_defaults(ready(generation_config=config))
    assert values == {"top_p": 0.5}
    assert {problem.param for problem in problems} == {*config} - {"top_p"}
    assert layered({"do_sample": True}, **config).params.top_p == 0.5


def test_an_unsound_default_of_the_models_is_logged_and_not_described(caplog: pytest.LogCaptureFixture) -> None:
    app = front(says("yes"), generation_config={"end_token_ids": [END_ID], "top_p": 2, "max_new_tokens": 3})
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "model tiny: generation_config.json is ignored in part: top_p is 2.0: it must be from 0 to 1."
    ]
    described = app.front.registry.get(ServedGenerator, None).describe()
    assert described["generation_config"] == {"end_token_ids": [END_ID], "max_new_tokens": 3}
    assert described["default_max_new_tokens"] == 3
