"""What each penalty counts, and by how much it lowers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as hf

from server.engine.processors.base import HIGHEST_LOGIT
from server.engine.processors.token_counts import ScopedCounts
from tests.engine.reference_rules import VOCAB_SIZE, ours, start

PROMPT, OUTPUT = [3, 5, 5, 7], [7, 9, 9]
ONES = torch.ones(1, VOCAB_SIZE)


def changed(params: dict[str, Any], spans: Any = (), logits: torch.Tensor = ONES) -> dict[int, float]:
    """Tokens whose logit is no longer 1."""
    found = ours(logits, [start(PROMPT, OUTPUT, template_spans=spans, **params)])[0]
    return {i: round(found[i].item(), 4) for i in (found != logits[0]).nonzero()[:, 0].tolist()}


@pytest.mark.parametrize(
    ("scope", "counted"),
    [
        (None, {3, 5, 7, 9}),
        ("both", {3, 5, 7, 9}),
        ("prompt", {3, 5, 7}),
        ("output", {7, 9}),
        (1, {9}),
        (4, {7, 9}),
        (5, {5, 7, 9}),
        (99, {3, 5, 7, 9}),
    ],
)
def test_the_repetition_penalty_counts_the_tokens_of_its_scope(scope, counted):
    assert changed({"repetition_penalty": 2.0, "penalty_scope": scope}) == dict.fromkeys(counted, 0.5)


@pytest.mark.parametrize(
    ("scope", "counts"),
    [
        (None, {7: 1, 9: 2}),
        ("output", {7: 1, 9: 2}),
        ("prompt", {3: 1, 5: 2, 7: 1}),
        ("both", {3: 1, 5: 2, 7: 2, 9: 2}),
        (2, {9: 2}),
        (6, {5: 2, 7: 2, 9: 2}),
    ],
)
def test_presence_counts_a_token_once_and_frequency_each_time(scope, counts):
    params = {"presence_penalty": 0.5, "frequency_penalty": 0.25, "penalty_scope": scope}
    assert changed(params) == {token_id: 1 - 0.5 - 0.25 * count for token_id, count in counts.items()}


@pytest.mark.parametrize(
    ("params", "counted"),
    [
        ({"repetition_penalty": 2.0}, {5, 7, 9}),
        ({"encoder_repetition_penalty": 0.5}, {5, 7}),
        ({"repetition_penalty": 2.0, "penalty_scope": 6}, {5, 7, 9}),
    ],
)
def test_a_templates_own_tokens_are_not_counted(params, counted):
    spans = [(0, 2)]  # the second 5 is the client's own
    assert changed(params, spans) == dict.fromkeys(counted, 0.5)


def test_a_penalty_above_one_lowers_logits_of_either_sign():
    logits = torch.ones(1, VOCAB_SIZE)
    logits[0, 5] = -1.0
    assert changed({"repetition_penalty": 4.0}, logits=logits) == {3: 0.25, 5: -4.0, 7: 0.25, 9: 0.25}


@pytest.mark.parametrize("penalty", [0.3, 1.7])
def test_the_encoder_repetition_penalty_is_transformers_with_the_prompt_as_encoder_ids(penalty):
    logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    theirs = hf.EncoderRepetitionPenaltyLogitsProcessor(penalty, torch.tensor([PROMPT]))(None, logits)
    assert torch.allclose(ours(logits, [start(PROMPT, OUTPUT, encoder_repetition_penalty=penalty)]), theirs)


@pytest.mark.parametrize("name", ["repetition_penalty", "encoder_repetition_penalty"])
@pytest.mark.parametrize("penalty", [1e-308, 1e-45, 1e-8, 1e30, 1e308])
@pytest.mark.parametrize("logit", [-0.0, 0.0, 1e-45, -1e-45, 3.0, -3.0, 1e30, -1e30, -torch.inf])
def test_no_penalty_makes_a_logit_infinite_or_no_number(name, penalty, logit):
    logits = torch.full((1, VOCAB_SIZE), logit)
    found = ours(logits, [start(PROMPT, OUTPUT, **{name: penalty})])
    assert not found.isnan().any()
    assert found.max() <= max(logit, HIGHEST_LOGIT)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    scope=st.sampled_from(["prompt", "output", "both", 1, 2, 5, 50]),
    prompt=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    output=st.lists(st.integers(0, 6), max_size=60),
    is_forked=st.booleans(),
)
def test_counts_that_are_kept_token_by_token_equal_those_of_the_whole(scope, prompt, output, is_forked):
    counts = ScopedCounts(start(prompt), scope)
    for token_id in output:
        if is_forked:
            counts, other = counts.fork(), counts
            other.accept(6)
        counts.accept(token_id)
    whole = {"prompt": prompt, "output": output, "both": prompt + output}
    some = (prompt + output)[-scope:] if isinstance(scope, int) else whole[scope]
    assert dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True)) == {i: some.count(i) for i in set(some)}
