"""Beam sampling against transformers' own search, whose draws are replaced by ours, written out once more."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from server.engine.beam_drawing import draw
from server.engine.randomness import uniforms
from tests.engine.beam_driving import search, transformers_search
from tests.tiny_models import tiny_decoder

RULES: list[dict[str, Any]] = [
    {},
    {"temperature": 1.8},
    {"temperature": 0.4, "length_penalty": 0.0},
    {"top_k": 40},
    {"top_k": 25, "temperature": 1.5, "repetition_penalty": 1.4},
    {"top_p": 0.97, "temperature": 2.0},
    {"min_p": 0.001, "temperature": 1.6},
    {"typical_p": 0.95, "temperature": 2.0},
    {"epsilon_cutoff": 1e-4, "temperature": 2.0},
    {"eta_cutoff": 1e-4, "temperature": 2.0, "no_repeat_ngram_size": 1},
    {"top_k": 60, "renormalize_logits": True, "early_stopping": True},
]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def module(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.set_num_threads(1)
    return tiny_decoder(request.param)


class OurDraws:
    """`torch.multinomial` as it draws here: one cumulative sum after the other."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.position = 0

    def __call__(self, probs: Tensor, num_samples: int) -> Tensor:
        weights = probs[0].double().clone()
        drawn = []
        for number in range(num_samples):
            cumulated = weights.cumsum(-1)
            uniform = uniforms([self.seed], [number], [self.position])[0]
            drawn.append(int((cumulated > uniform * cumulated[-1]).nonzero()[0]))
            assert weights[drawn[-1]] > 0
            weights[drawn[-1]] = 0.0
        self.position += 1
        return torch.tensor([drawn])


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_drawn_hypotheses_are_those_of_transformers_with_the_same_draws(module, rules):
    for seed, num_beams in enumerate([2, 3, 4, 1]):
        prompt_ids = [7 + seed, 90, 41]
        end_ids = [[11], [2, 40], None, [3]][seed]
        options: dict[str, Any] = {
            "num_beams": num_beams,
            "num_return_sequences": num_beams,
            "max_new_tokens": 12,
            "do_sample": True,
            **rules,
        }
        run = search(module, prompt_ids, seed=seed, end_token_ids=tuple(end_ids or ()), **options)
        # transformers' own default keeps the fifty likeliest.
        options.setdefault("top_k", 0)
        with patch.object(torch, "multinomial", OurDraws(seed)):
            expected = transformers_search(module, prompt_ids, eos=end_ids, **options)
        assert run.outputs == expected.outputs
        assert run.scores == pytest.approx(expected.scores, abs=1e-4, rel=2e-6)


def test_the_seed_decides(module):
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 10, "do_sample": True, "temperature": 2.0}
    outputs = [search(module, [5, 6], seed=seed, **options).outputs for seed in (1, 1, 2, 3)]
    assert outputs[0] == outputs[1]
    assert len({tuple(output[0]) for output in outputs}) == 3


def test_a_draw_over_many_blocks_is_the_one_over_the_whole():
    generator = np.random.default_rng(0)
    for seed in range(20):
        scores = generator.normal(size=3000).astype(np.float32) * 3
        scores[generator.random(3000) < 0.3] = -np.inf
        expected = OurDraws(seed)(torch.from_numpy(scores).softmax(-1)[None], 40)[0].tolist()
        assert draw(scores, 40, seed=seed, position=0, is_allowed=lambda index: True) == expected


def test_what_is_not_allowed_is_left_out_as_if_it_were_not_there():
    """The chances of two draws without replacement, where one of four may not be."""
    scores = np.log(np.array([0.4, 0.3, 0.2, 0.1], dtype=np.float32))
    counts = np.zeros((4, 4))
    num_draws = 20_000
    for seed in range(num_draws):
        first, second = draw(scores, 2, seed=seed, position=3, is_allowed=lambda index: index != 1)
        counts[first, second] += 1
    weights = np.array([0.4, 0.0, 0.2, 0.1]) / 0.7
    expected = np.outer(weights, weights) / (1 - weights)[:, None]
    np.fill_diagonal(expected, 0)
    deviation = np.sqrt(num_draws * expected * (1 - expected))
    assert (np.abs(counts - num_draws * expected) <= 4 * deviation).all()


def test_no_more_is_drawn_than_there_is():
    scores = np.array([-np.inf, 0.0, -np.inf, -1.0], dtype=np.float32)
    assert sorted(draw(scores, 5, seed=1, position=0, is_allowed=lambda index: True)) == [1, 3]
