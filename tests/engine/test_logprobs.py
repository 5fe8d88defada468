"""Log-probabilities that are told: of which distribution, in what order, and the same float everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from server.engine.logprobs import logprobs_of
from server.engine.row_index import RowIndex
from server.engine.sampler import Sampled, Sampler
from server.engine.sequence import Sequence
from tests.engine.test_sampler import logits_of, processed, sequence

torch.set_num_threads(1)

KINDS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "temperature": 0.7},
    {"do_sample": True, "temperature": 1.4, "top_k": 40},
    {"do_sample": True, "top_p": 0.9},
    {"do_sample": True, "min_p": 0.02, "typical_p": 0.7},
    {"do_sample": True, "eta_cutoff": 0.002},
    {"do_sample": True, "temperature": 0.6, "xtc_probability": 1.0, "xtc_threshold": 0.02},
    {"do_sample": True, "top_n_sigma": 2.0, "repetition_penalty": 1.7},
    {"logit_bias": {3: 4.0, 9: float("-inf")}, "suppress_tokens": (5, 6)},
    {"do_sample": True, "temperature": 1e-8},
]


def sample(logits: torch.Tensor, rows: list[Sequence]) -> Sampled:
    return Sampler().sample(logits.clone(), rows)


@pytest.mark.parametrize("mode", ["raw", "processed"])
@pytest.mark.parametrize("vocab_size", [40, 3001])
def test_the_most_likely_tokens_are_those_of_the_distribution_that_was_asked_for(mode, vocab_size):
    logits = logits_of(len(KINDS), vocab_size, seed=2, scale=2.0)
    rows = [sequence(seed=i, top_n_tokens=6, logprobs_mode=mode, **kind) for i, kind in enumerate(KINDS)]
    sampled = sample(logits, rows)
    for i, row in enumerate(rows):
        expected = (logits[i] if mode == "raw" else processed(logits[i], row)).double().log_softmax(-1)
        assert np.isfinite(sampled.logprobs[i])
        assert sampled.logprobs[i] == pytest.approx(expected[sampled.token_ids[i]].item(), abs=3e-6)
        best = expected.topk(6)
        found = sampled.top_logprobs[i]
        assert [top.token_id for top in found] == best.indices[best.values.isfinite()].tolist()[: len(found)]
        assert [top.logprob for top in found] == pytest.approx(best.values[: len(found)].tolist(), rel=1e-6, abs=3e-6)
        # Less than six only where the rest cannot be chosen.
        assert len(found) == 6 or expected.exp()[best.indices[len(found)]] < 1e-30


@pytest.mark.parametrize("mode", ["raw", "processed"])
def test_the_chosen_tokens_logprob_is_the_same_float_among_the_most_likely(mode):
    num_same = 0
    for seed in range(6):
        logits = logits_of(len(KINDS), 700, seed=seed, scale=3.0)
        kinds = [{**kind, "top_n_tokens": 20, "logprobs_mode": mode} for kind in KINDS]
        sampled = sample(logits, [sequence(seed=seed, **kind) for kind in kinds])
        for token_id, logprob, tops in zip(sampled.token_ids, sampled.logprobs, sampled.top_logprobs, strict=True):
            same = [top.logprob for top in tops if top.token_id == token_id]
            assert same in ([], [logprob])
            num_same += len(same)
    assert num_same > 40


def test_what_a_row_is_told_does_not_depend_on_its_neighbours():
    logits = logits_of(2 * len(KINDS), 3001, seed=4, scale=2.0)
    rows = [
        sequence(seed=i, logprobs=True, top_n_tokens=i % 7, logprobs_mode=("raw", "processed")[i % 2], **kind)
        for i, kind in enumerate(KINDS * 2)
    ]
    together = sample(logits, rows)
    for i, row in enumerate(rows):
        alone = sample(logits[i : i + 1], [row])
        assert alone.token_ids == [together.token_ids[i]]
        assert alone.logprobs == [together.logprobs[i]]
        assert alone.top_logprobs == [together.top_logprobs[i]]


def test_rows_that_ask_for_nothing_are_told_nothing():
    rows = [sequence(), sequence(logprobs=True), sequence(top_n_tokens=2), sequence(logprobs_mode="processed")]
    sampled = sample(logits_of(4, 100), rows)
    assert [len(tops) for tops in sampled.top_logprobs] == [0, 0, 2, 0]
    assert [logprob != 0.0 for logprob in sampled.logprobs] == [False, True, True, False]


def test_rows_that_stay_the_same_are_indexed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU an index is a copy to the device."""
    made = []
    right = RowIndex.of

    def of(rows: Any, num_rows: int, device: torch.device) -> RowIndex:
        made.append(tuple(rows))
        return right(rows, num_rows, device)

    monkeypatch.setattr(RowIndex, "of", of)
    rows = [sequence(), sequence(logprobs=True), sequence(top_n_tokens=2), sequence()]
    sampler, counts = Sampler(), []
    for step in range(4):
        sampler.sample(logits_of(4, 100, seed=step), rows)
        counts.append(made.count((1, 2)))
    assert counts == [1, 1, 1, 1]


@pytest.mark.parametrize("num_levels", [2, 5, 40])
def test_of_equal_logits_the_lower_ids_come_first_and_none_is_passed_over(num_levels):
    logits = (logits_of(6, 5003, scale=1.0) * num_levels).round() / num_levels
    _, tops = logprobs_of(logits, [0] * 6, 20)
    for i, row in enumerate(tops):
        assert [top.token_id for top in row] == logits[i].sort(descending=True, stable=True).indices[:20].tolist()
        assert [top.logprob for top in row] == sorted((top.logprob for top in row), reverse=True)


def test_a_token_that_cannot_be_chosen_is_not_among_the_most_likely():
    logits = torch.full((1, 50), -torch.inf)
    logits[0, [4, 8]] = torch.tensor([1.0, 2.0])
    _, tops = logprobs_of(logits, [8], 5)
    assert [top.token_id for top in tops[0]] == [8, 4]
    assert sum(np.exp(top.logprob) for top in tops[0]) == pytest.approx(1.0)


def test_a_long_prompts_logprobs_are_those_of_each_place_alone():
    logits = logits_of(70, 900, seed=8)
    ids = torch.randint(900, (70,), generator=torch.Generator().manual_seed(0)).tolist()
    logprobs, tops = logprobs_of(logits, ids, 3)
    expected = logits.double().log_softmax(-1)
    assert logprobs == pytest.approx([expected[i, token_id].item() for i, token_id in enumerate(ids)], abs=2e-6)
    assert [tops[i] for i in (0, 69)] == [logprobs_of(logits[i : i + 1], [0], 3)[1][0] for i in (0, 69)]
    assert logprobs_of(logits[:0], [], 3) == ([], [])
