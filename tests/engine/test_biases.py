"""Biases on tokens and on token sequences."""

from __future__ import annotations

import pytest
import torch
from transformers.generation import logits_process as hf

from tests.engine.reference_rules import VOCAB_SIZE, ours, start
from tests.oracle_versions import needs_oracle

INF = float("inf")
ZEROS = torch.zeros(1, VOCAB_SIZE)


def biased(prompt: list[int], output: list[int], **params: object) -> dict[int, float]:
    found = ours(ZEROS, [start(prompt, output, **params)])[0]
    return {i: round(found[i].item(), 4) for i in found.nonzero()[:, 0].tolist()}


def test_a_sequence_bias_counts_once_the_tokens_before_its_last_are_there():
    biases = (((7,), 1.0), ((1, 7), 2.0), ((1, 2, 9), 4.0), ((2, 2, 2, 2, 2, 8), 8.0))
    assert biased([5], [], sequence_bias=biases) == {7: 1.0}
    assert biased([5, 1], [], sequence_bias=biases) == {7: 3.0}
    assert biased([5, 1], [2], sequence_bias=biases) == {7: 1.0, 9: 4.0}
    assert biased([5, 2], [2, 2, 2, 2], sequence_bias=biases) == {7: 1.0, 8: 8.0}


@needs_oracle("sequence_bias")
def test_a_ban_of_a_sequence_is_transformers_bad_words():
    bans = [[4], [1, 2], [3, 1, 5], [1, 1, 1, 6]]
    for tokens in ([9], [1], [3, 1], [1, 1, 1], [0, 1, 3, 1]):
        logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(len(tokens)))
        theirs = hf.NoBadWordsLogitsProcessor(bans)(torch.tensor([tokens]), logits)
        row = start(tokens, sequence_bias=tuple((tuple(ban), -INF) for ban in bans))
        assert torch.equal(ours(logits, [row]), theirs)


def test_a_ban_stands_whatever_else_is_said_of_the_token():
    everything = {
        "sequence_bias": (((1, 7), -INF), ((7,), INF), ((1, 7), 5.0)),
        "logit_bias": {7: INF},
        "repetition_penalty": 0.1,
        "presence_penalty": -9.0,
        "encoder_repetition_penalty": 9.0,
    }
    assert biased([7, 1], [7, 1], **everything)[7] == -INF


@pytest.mark.parametrize("bias", [INF, 1e308, 1e38])
def test_a_token_lifted_without_bound_is_certain_and_finite(bias):
    found = ours(ZEROS, [start([1], [2], logit_bias={5: bias}, sequence_bias=(((5,), bias), ((2, 5), bias)))])[0]
    assert found.isfinite().all()
    assert found.softmax(-1)[5] == 1.0


@pytest.mark.parametrize("bias", [-INF, -1e308])
def test_a_bias_without_bound_downwards_is_a_ban(bias):
    assert biased([1], [], logit_bias={5: bias}) == {5: -INF}


@pytest.mark.parametrize("bias", [-0.0, 0.0, 5e-324, 1e-308, -1e-45])
def test_a_bias_too_small_to_see_changes_nothing(bias):
    logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(3))
    assert torch.equal(ours(logits, [start([1], logit_bias={5: bias})]), logits)
