"""What the draw's rules leave of whole rows, as beams use them, and under extreme values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.engine import cutoffs, draw_rules
from server.engine.controls import Controls
from server.engine.reductions import Scratch
from server.engine.row_index import RowIndex
from server.engine.sampler import Sampler
from server.protocol import SamplingParams
from tests.engine.reference_rules import drawn_from
from tests.engine.test_sampler import logits_of, sequence
from tests.native import variants

torch.set_num_threads(1)


@pytest.fixture(params=variants.WAYS, autouse=True)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    variants.use(request.param, monkeypatch)


RULES: dict[str, list[Any]] = {
    "temperature": [1.0, 0.3, 1.7],
    "top_n_sigma": [0.0, 1.0, 2.5],
    "top_k": [0, 1, 7, 60, 1500],
    "top_p": [1.0, 0.05, 0.6, 0.95, 0.9999],
    "min_p": [0.0, 0.01, 0.2, 1.0],
    "typical_p": [1.0, 0.2, 0.9],
    "epsilon_cutoff": [0.0, 0.001, 0.3],
    "eta_cutoff": [0.0, 0.001, 0.3],
}


def asked(**params: Any) -> SamplingParams:
    return SamplingParams(max_new_tokens=9, do_sample=True, **params)


def assert_same_rows(logprobs: torch.Tensor, params: SamplingParams, num_kept: int) -> None:
    found = cutoffs.apply_full(logprobs, params, num_kept)
    for row, scores in zip(found, logprobs, strict=True):
        expected = drawn_from(scores, params, num_kept)
        assert torch.equal(row.isfinite(), expected.isfinite())
        assert torch.allclose(row, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_kept", [1, 2, 4])
@pytest.mark.parametrize(("rule", "value"), [(rule, value) for rule, values in RULES.items() for value in values[1:]])
@pytest.mark.parametrize(("vocab_size", "scale"), [(23, 2.0), (2003, 1.0), (6007, 4.0)])
def test_each_rule_leaves_of_whole_rows_what_transformers_leaves(rule, value, num_kept, vocab_size, scale):
    logprobs = logits_of(3, vocab_size, seed=3, scale=scale).log_softmax(-1)
    assert_same_rows(logprobs, asked(**{rule: value}), num_kept)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    params=st.fixed_dictionaries({rule: st.sampled_from(values) for rule, values in RULES.items()}),
    num_kept=st.integers(1, 4),
    vocab_size=st.sampled_from([23, 400, 2003]),
    scale=st.sampled_from([0.5, 2.0, 6.0]),
    seed=st.integers(0, 1000),
)
def test_all_rules_together_leave_of_whole_rows_what_transformers_leaves(params, num_kept, vocab_size, scale, seed):
    logprobs = logits_of(2, vocab_size, seed, scale).log_softmax(-1)
    found = cutoffs.apply_full(logprobs, asked(**params), num_kept)
    for row, scores in zip(found, logprobs, strict=True):
        expected = drawn_from(scores, asked(**params), num_kept)
        differing = (row.isfinite() != expected.isfinite()).nonzero()[:, 0]
        # A token on the very edge of a rule falls by the rounding of a sum.
        assert len(differing) == 0 or _is_on_an_edge(scores, asked(**params), num_kept, differing)
        both = row.isfinite() & expected.isfinite()
        assert torch.allclose(row[both], expected[both], rtol=1e-6, atol=1e-6)


def _is_on_an_edge(scores: torch.Tensor, params: SamplingParams, num_kept: int, differing: torch.Tensor) -> bool:
    """Whether a rounding error in the scores changes the fate of these tokens in transformers too."""
    fates = [
        drawn_from(
            scores + 1e-6 * torch.randn(scores.shape, generator=torch.Generator().manual_seed(i)), params, num_kept
        )
        for i in range(20)
    ]
    kept = torch.stack([fate.isfinite()[differing] for fate in fates])
    return bool((kept.any(0) & ~kept.all(0)).all())


def test_rows_that_are_left_unchanged_are_not_written_to():
    logprobs = logits_of(2, 500).log_softmax(-1)
    before = logprobs.clone()
    cutoffs.apply_full(logprobs, asked(top_n_sigma=1.0, min_p=0.1, top_k=5, typical_p=0.5), 2)
    assert torch.equal(logprobs, before)


@pytest.mark.parametrize("temperature", [1e-308, 1e-45, 1e-38, 1e-20, 1e-8, 1e-3, 1e3, 1e38, 1e308])
@pytest.mark.parametrize(
    "rules", [{}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {"typical_p": 0.5}, {"eta_cutoff": 0.01}]
)
def test_no_temperature_makes_a_draw_fail(temperature, rules):
    logits = logits_of(4, 300)
    logits[:, 100:] = -torch.inf
    logits[1, 3] = 1e15
    rows = [sequence(do_sample=True, seed=i, temperature=temperature, **rules) for i in range(4)]
    sampled = Sampler().sample(logits.clone(), rows)
    assert sampled.is_finite == [True] * 4
    assert max(sampled.token_ids) < 100
    if temperature < 1e-7:
        assert sampled.token_ids == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 1},
        {"top_p": 5e-324},
        {"min_p": 1.0},
        {"top_n_sigma": 5e-324},
        {"typical_p": 0.999999, "top_k": 1},
        {"epsilon_cutoff": 1.0 - 2**-53},
        {"eta_cutoff": 1.0 - 2**-53, "temperature": 1e-8},
    ],
)
def test_a_rule_at_its_strictest_leaves_the_most_likely_token(params):
    logits = logits_of(6, 3001, scale=2.0)
    rows = [sequence(do_sample=True, seed=i, **params) for i in range(6)]
    assert Sampler().sample(logits.clone(), rows).token_ids == logits.argmax(-1).tolist()


@pytest.mark.parametrize("logit", [-0.0, 0.0, 1e-45, 1e-38, 1e-308, 1e30])
@pytest.mark.parametrize("rules", [{}, {"top_k": 3}, {"top_p": 0.5}, {"typical_p": 0.5}, {"epsilon_cutoff": 0.1}])
def test_rows_of_equal_logits_are_drawn_from(logit, rules):
    rows = [sequence(do_sample=True, seed=i, **rules) for i in range(20)]
    sampled = Sampler().sample(torch.full((20, 150), logit), rows)
    assert all(sampled.is_finite)
    assert all(0 <= token_id < 150 for token_id in sampled.token_ids)


def test_sigmas_are_counted_over_finite_logits_only():
    logits = torch.tensor([[4.0, 2.0, 0.0, -2.0, -torch.inf, -4.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    # The first row's deviation is the root of 8.
    draw_rules.keep_top_n_sigma(logits, RowIndex.of([0, 1], 2, logits.device), [1.0, 3.0])
    assert logits[0].tolist() == [4.0, 2.0, *[-torch.inf] * 4]
    assert logits[1].tolist() == [1.0] * 6


@pytest.mark.parametrize(
    ("threshold", "left"), [(0.5, [0, 1, 2, 3]), (0.3, [1, 2, 3]), (0.2, [2, 3]), (0.05, [3]), (0.35, [0, 1, 2, 3])]
)
def test_xtc_excludes_all_top_choices_but_the_least_likely_of_them(threshold, left):
    scores = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log() + 1e-4
    found = draw_rules.exclude_top_choices(scores, torch.tensor([[threshold - 1e-3]]), 1)
    assert found[0].isfinite().nonzero()[:, 0].tolist() == left


def test_xtc_never_brings_back_a_token_that_is_forbidden():
    scores = torch.tensor([[-torch.inf, 2.0, 1.0, -torch.inf]])
    left = draw_rules.exclude_top_choices(scores, torch.tensor([[0.0]]), 1)
    assert left.tolist() == [[-torch.inf, -torch.inf, 1.0, -torch.inf]]


def test_xtc_leaves_as_many_tokens_as_must_stay():
    scores = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    exclude = draw_rules.exclude_top_choices
    assert exclude(scores, torch.tensor([[0.15]]), 2)[0].isfinite().sum() == 2
    assert torch.equal(exclude(scores, torch.tensor([[0.15]]), 3), scores)


@pytest.mark.parametrize("probability", [0.25, 0.8])
def test_xtc_has_its_way_as_often_as_its_probability_says(probability):
    num_draws = 2000
    params = {"xtc_probability": probability, "xtc_threshold": 0.05, "top_k": 2}
    rows = [sequence(do_sample=True, seed=i, **params) for i in range(num_draws)]
    logits = torch.tensor([[9.0, 1.0, 8.9, 0.0]]).expand(num_draws, -1)
    tokens = Sampler().sample(logits.clone(), rows).token_ids
    share_of_first = tokens.count(0) / num_draws  # only where nothing is excluded
    assert share_of_first == pytest.approx((1 - probability) * 0.525, abs=0.04)


def test_xtc_in_a_beam_search_is_decided_for_all_its_rows_at_once():
    logprobs = torch.tensor([[0.5, 0.3, 0.2], [0.3, 0.5, 0.2]]).log()
    params = asked(xtc_probability=0.5, xtc_threshold=0.25)
    excluded = [cutoffs.apply_full(logprobs.clone(), params, 1, position=i).isinf() for i in range(64)]
    assert all(bool(first.any()) == bool(second.any()) for first, second in excluded)
    assert 16 < sum(bool(both.any()) for both in excluded) < 48


@pytest.mark.parametrize("seed", range(5))
def test_a_window_leaves_what_all_tokens_sorted_leave(seed):
    logits = logits_of(4, 3001, seed, scale=1.5)
    params = [asked(top_p=0.7), asked(top_k=40), asked(min_p=0.05, top_p=0.9), asked(top_k=30, typical_p=0.4)]
    controls = Controls.of(params, logits)
    whole = cutoffs.window(3001, logits, controls, Scratch())
    for width in (256, 1024):
        narrow = cutoffs.window(width, logits, controls, Scratch())
        for i in narrow.settled_R.nonzero()[:, 0].tolist():
            kept = narrow.columns_RW[i][narrow.scores_RW[i].isfinite()].tolist()
            assert kept == whole.scores_RW[i].isfinite().nonzero()[:, 0].tolist()
    assert narrow.settled_R.all()
