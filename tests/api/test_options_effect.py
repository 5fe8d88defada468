"""No option is accepted and ignored: each changes what a real engine answers behind the real front."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.api.scripted import END_ID, TOKENIZER
from tests.api.test_options_page import engine_client
from tests.option_examples import EXAMPLES, GRAMMAR, NEEDS_MORE

FEW = [TOKENIZER.encode(text, add_special_tokens=False).ids[-1] for text in ("a", "e", "o", "i")]
"""Tokens that an output is made of where it shall repeat itself."""
A_ID, E_ID, O_ID, I_ID = ([token_id] for token_id in FEW)
REPEATING = {"allowed_token_ids": FEW, "ignore_eos": True, "max_new_tokens": 16}
ENDING = {"allowed_token_ids": FEW, "max_new_tokens": 16}
DRY = {**REPEATING, "dry_multiplier": 3}
BEAMS = {**ENDING, "num_beams": 4}
BANNED = {**REPEATING, "banned_phrases": ["a", "ei"]}
SAMPLING = {"do_sample": True, "temperature": 1.5}
PROMPTS = ["aeoiaeoi", "eaeaoieae", "The old mill", "oooaaaeeeiii", "ia:oe:ia"]

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "min_new_tokens": (ENDING, {"min_new_tokens": 12}),
    "min_length": ({"allowed_token_ids": FEW, "max_length": 40}, {"min_length": 38}),
    "max_length": ({}, {"max_length": 24}),
    "stop": (REPEATING, {"stop": ["a"]}),
    "stop_token_ids": (REPEATING, {"stop_token_ids": A_ID}),
    "eos_token_id": (ENDING, {"eos_token_id": A_ID}),
    "ignore_eos": (ENDING, {"ignore_eos": True}),
    "exponential_decay_length_penalty": (ENDING, {"exponential_decay_length_penalty": [1, 3.0]}),
    "length_penalty": ({**BEAMS, "details": True}, {"length_penalty": 3.0}),
    "early_stopping": (BEAMS, {"early_stopping": True}),
    "repetition_penalty": (REPEATING, {"repetition_penalty": 3.0}),
    "presence_penalty": (REPEATING, {"presence_penalty": 2.0}),
    "frequency_penalty": (REPEATING, {"frequency_penalty": 2.0}),
    "penalty_scope": ({**REPEATING, "repetition_penalty": 3.0}, {"penalty_scope": 2}),
    "encoder_repetition_penalty": (REPEATING, {"encoder_repetition_penalty": 3.0}),
    "no_repeat_ngram_size": (REPEATING, {"no_repeat_ngram_size": 3}),
    "encoder_no_repeat_ngram_size": (REPEATING, {"encoder_no_repeat_ngram_size": 2}),
    "dry_multiplier": (REPEATING, {"dry_multiplier": 3}),
    "dry_base": ({**DRY, "dry_multiplier": 0.3, "dry_allowed_length": 1}, {"dry_base": 9.0}),
    "dry_allowed_length": (DRY, {"dry_allowed_length": 1}),
    "dry_range": (DRY, {"dry_range": 3}),
    "dry_sequence_breakers": (DRY, {"dry_sequence_breakers": ["a"]}),
    "sequence_bias": (REPEATING, {"sequence_bias": [[[*A_ID, *E_ID], -50], [[*E_ID, *O_ID], 50]]}),
    "bad_words_ids": (REPEATING, {"bad_words_ids": [[*A_ID, *E_ID], [*I_ID, *I_ID]]}),
    "bad_words": (REPEATING, {"bad_words": ["a"]}),
    "suppress_tokens": (REPEATING, {"suppress_tokens": A_ID}),
    "begin_suppress_tokens": (REPEATING, {"begin_suppress_tokens": [*A_ID, *E_ID]}),
    "renormalize_logits": ({**BEAMS, "no_repeat_ngram_size": 3}, {"renormalize_logits": True}),
    "banned_phrases": (REPEATING, {"banned_phrases": ["a"]}),
    "max_rewinds": (BANNED, {"max_rewinds": 1}),
    "penalties": (REPEATING, {"penalties": [{"phrase": "a", "strength": 10}]}),
    "logprobs_mode": ({**SAMPLING, "details": True}, {"logprobs_mode": "processed"}),
    "xtc_threshold": ({**REPEATING, **SAMPLING, "xtc_probability": 1.0}, {"xtc_threshold": 0.4}),
    "grammar": ({"max_new_tokens": 6}, GRAMMAR),
}
"""Parameters, and the option that is added to them: where the example's effect is no certain one."""


NEEDS_A_PLACE = {*NEEDS_MORE, "penalize_template", "max_time"}
"""Options whose effect needs more than one model and a text; `test_max_time.py` has its own tests."""


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with engine_client(default_max_new_tokens=8) as client:
        yield client


def answer(client: TestClient, text: str, parameters: dict[str, Any]) -> Any:
    """All that was answered but what differs from call to call."""
    response = client.post("/generate", json={"inputs": text, "parameters": {"seed": 5, **parameters}})
    assert response.status_code == 200, response.text
    found = response.json()
    if details := found.get("details"):
        for name in ("timings", "cached_tokens"):
            details.pop(name, None)
    return found


def without(name: str) -> dict[str, Any]:
    """The example's other parameters, unless they are only there for the option."""
    others = {other: value for other, value in EXAMPLES[name].items() if other != name}
    only_with_it = {"xtc_probability", "dry_multiplier", "best_of", "n", "num_return_sequences"}
    if name in only_with_it or name in ("num_beams", "num_beam_groups", "diversity_penalty"):
        return {key: value for key, value in others.items() if key not in ("num_beam_groups", "diversity_penalty")}
    return others


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in NEEDS_A_PLACE])
def test_every_option_changes_an_answer(client: TestClient, name: str) -> None:
    fewer, more = CASES.get(name, (without(name), EXAMPLES[name]))
    if name == "seed":
        fewer = {"do_sample": True, "seed": 8}
    pairs = ((answer(client, text, fewer), answer(client, text, {**fewer, **more})) for text in PROMPTS)
    assert any(one != other for one, other in pairs)


def test_the_same_parameters_give_the_same_answer(client: TestClient) -> None:
    """Or the test above would prove nothing."""
    for parameters in (REPEATING, BEAMS, {**SAMPLING, "details": True}):
        assert answer(client, PROMPTS[0], parameters) == answer(client, PROMPTS[0], parameters)


def test_the_end_token_is_one_that_the_engine_may_choose() -> None:
    assert END_ID not in FEW and len({*FEW}) == 4
