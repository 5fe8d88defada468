"""Tokens that are allowed, suppressed or forced, and rules on the length."""

from __future__ import annotations

import pytest
import torch
from transformers.generation import logits_process as hf

from server.engine.processors.base import HIGHEST_LOGIT
from tests.engine.reference_rules import VOCAB_SIZE, ours, start
from tests.oracle_versions import is_oracle

LOGITS = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))


def allowed(prompt: list[int], output: list[int], **params: object) -> set[int]:
    found = ours(LOGITS, [start(prompt, output, **params)])[0]
    return set(found.isfinite().nonzero()[:, 0].tolist())


ALL = set(range(VOCAB_SIZE))


def test_only_allowed_tokens_and_those_that_end_the_sequence_can_be_chosen():
    params = {"allowed_token_ids": (3, 4), "end_token_ids": (1,), "stop_token_ids": (2,)}
    assert allowed([5], [], **params) == {1, 2, 3, 4}
    assert allowed([5], [], **params, ignore_eos=True) == {2, 3, 4}
    assert allowed([5], [], **params, min_new_tokens=1) == {3, 4}
    kept = ours(LOGITS, [start([5], **params)])[0]
    assert torch.equal(kept[[1, 2, 3, 4]], LOGITS[0, [1, 2, 3, 4]])


@pytest.mark.parametrize("num_allowed", [3, 999, 1000, 4000])
def test_a_long_list_of_allowed_tokens_is_as_exact_as_a_short_one(num_allowed):
    logits = torch.randn(2, 5000, generator=torch.Generator().manual_seed(1))
    ids = torch.randperm(5000, generator=torch.Generator().manual_seed(2))[:num_allowed]
    row = start([5], allowed_token_ids=(*ids.tolist(), 10**6))
    expected = torch.full((5000,), -torch.inf)
    expected[ids] = logits[0, ids]
    found = ours(logits, [row, start([5])])
    assert torch.equal(found, torch.stack([expected, logits[1]]))


def test_suppressed_tokens_are_never_chosen_and_begin_suppressed_ones_not_first():
    params = {"suppress_tokens": (3, 3, 9), "begin_suppress_tokens": (9, 4)}
    assert allowed([5], [], **params) == ALL - {3, 4, 9}
    assert allowed([5], [6], **params) == ALL - {3, 9}


def test_a_forced_first_token_is_the_only_one_and_what_is_suppressed_at_the_begin_comes_after_it():
    params = {"forced_bos_token_id": 7, "begin_suppress_tokens": (7, 8), "logit_bias": {7: float("-inf")}}
    assert allowed([5, 6], [], **params) == {7}
    assert allowed([5, 6], [7], **params) == ALL - {7, 8}
    assert allowed([5, 6], [7, 1], **params) == ALL - {7}


def test_a_forced_last_token_comes_at_the_last_place_only():
    params = {"forced_eos_token_ids": (7, 8), "max_new_tokens": 3}
    assert allowed([5], [1], **params) == ALL
    assert allowed([5], [1, 1], **params) == {7, 8}
    # No least length stands against it, as in transformers.
    assert allowed([5], [1, 1], **params, min_new_tokens=3, stop_token_ids=(7, 8)) == {7, 8}


def test_before_its_least_length_no_token_ends_the_sequence():
    params = {"min_new_tokens": 2, "end_token_ids": (1,), "stop_token_ids": (2,)}
    assert allowed([5], [6], **params) == ALL - {1, 2}
    assert allowed([5], [6, 6], **params) == ALL


@pytest.mark.parametrize("factor", [0.5, 1.05, 3.0])
@pytest.mark.parametrize("num_new", [0, 3, 4, 5, 9])
def test_the_length_penalty_grows_with_each_token_as_in_transformers(factor, num_new):
    prompt, output = [5, 6], [6] * num_new
    logits = LOGITS.clone()
    if is_oracle("exponential_decay_length_penalty"):
        logits[0, 2] = -torch.inf
    theirs = hf.ExponentialDecayLengthPenalty((3, factor), [1, 2], len(prompt))(torch.tensor([prompt + output]), logits)
    row = start(prompt, output, exponential_decay_length_penalty=(3, factor), end_token_ids=(1,), stop_token_ids=(2,))
    assert torch.allclose(ours(logits, [row]), theirs)


@pytest.mark.parametrize("logit", [0.0, -0.0, 1e-45, 2.0, -2.0])
def test_a_length_penalty_that_outgrows_all_numbers_stays_finite(logit):
    logits = torch.full((1, VOCAB_SIZE), logit)
    row = start([5], [6] * 3999, max_new_tokens=4000, exponential_decay_length_penalty=(0, 50.0), end_token_ids=(1,))
    found = ours(logits, [row])[0]
    assert found.isfinite().all()
    assert found[1] <= HIGHEST_LOGIT
