"""The token budget follows measured speed: large where tokens are cheap beside a step, small where they are dear."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from server.token_budget import MULTIPLE, TokenBudget

Cost = Callable[[int], float]


def budget() -> TokenBudget:
    return TokenBudget(first=128, usual=512, most=2048, step_s=0.5)


def linear(fixed_s: float, token_s: float) -> Cost:
    return lambda num_tokens: fixed_s + token_s * num_tokens


def run(learned: TokenBudget, cost: Cost, num_steps: int = 40) -> int:
    """Steps of one token and full steps in turn, as a decoder makes them."""
    for _ in range(num_steps):
        learned.observe(1, cost(1))
        learned.observe(learned.num_tokens, cost(learned.num_tokens))
    return learned.num_tokens


@pytest.mark.parametrize("token_ms", [0.1, 0.14, 0.3, 0.6])
def test_the_fixed_part_becomes_a_small_share_of_a_step(token_ms):
    cost = linear(0.008, token_ms / 1e3)
    num_tokens = run(budget(), cost)
    assert cost(num_tokens) <= 0.5
    assert num_tokens in (2048, pytest.approx(31 * 8 / token_ms, abs=2 * MULTIPLE))


def test_a_slow_machine_gets_steps_within_the_time_limit():
    cost = linear(0.025, 0.0024)
    num_tokens = run(budget(), cost)
    assert 0.45 < cost(num_tokens) <= 0.5


def test_a_step_takes_longer_than_the_limit_where_most_of_it_would_be_fixed():
    cost = linear(0.4, 0.033)
    num_tokens = run(budget(), cost)
    assert cost(1) / cost(num_tokens) == pytest.approx(0.25, abs=0.1)


def test_the_first_full_step_is_small_and_shortens_the_next_ones():
    learned = budget()
    assert learned.num_tokens == 128
    learned.observe(128, 128 * 0.010)
    assert learned.num_tokens == 48


def test_the_usual_budget_serves_while_the_fixed_part_is_unknown():
    learned = budget()
    for _ in range(9):
        learned.observe(learned.num_tokens, 0.02 + 0.0002 * learned.num_tokens)
    assert learned.num_tokens == 512


def test_it_follows_a_machine_that_becomes_slow_and_fast_again():
    learned = budget()
    fast, slow = linear(0.008, 0.0003), linear(0.08, 0.006)
    before = run(learned, fast)
    assert slow(run(learned, slow)) <= 0.5
    assert run(learned, fast) == pytest.approx(before, abs=2 * MULTIPLE)


def test_tokens_that_cost_more_for_a_while_do_not_keep_the_budget_small():
    learned = budget()
    cost = linear(0.022, 0.0007)
    before = run(learned, cost)
    for _ in range(20):
        learned.observe(32, cost(32), is_growth=True)
    for _ in range(8):
        # One long prompt, whose tokens attend to ever more others.
        learned.observe(learned.num_tokens, 0.0022 * learned.num_tokens)
        assert learned.num_tokens >= 128
    for _ in range(8):
        learned.observe(32, cost(32), is_growth=True)
        learned.observe(learned.num_tokens, cost(learned.num_tokens))
    assert learned.num_tokens >= 0.5 * before


def test_an_encoder_that_had_a_few_long_texts_goes_back_to_large_batches():
    learned = TokenBudget(first=128, usual=512, most=4096, step_s=0.25)
    cost = linear(0.0015, 0.00005)
    before = run(learned, cost)
    for _ in range(8):
        learned.observe(learned.num_tokens, 0.00007 * learned.num_tokens)
    for _ in range(20):
        learned.observe(100, cost(100))
        learned.observe(learned.num_tokens, cost(learned.num_tokens))
    assert learned.num_tokens >= 0.5 * before


def test_steps_of_growing_sequences_do_not_show_what_a_prompts_token_costs():
    learned = budget()
    before = run(learned, linear(0.008, 0.0004))
    for _ in range(40):
        learned.observe(before, 6.0, is_growth=True)
    assert learned.num_tokens == before


def test_one_interrupted_step_changes_nothing():
    learned = budget()
    before = run(learned, linear(0.008, 0.0004))
    learned.observe(before, 5.0)
    learned.observe(1, 5.0)
    assert learned.num_tokens == before


def test_it_stays_within_its_bounds_whatever_is_measured():
    rng = random.Random(0)
    learned = budget()
    for _ in range(5000):
        learned.observe(rng.choice([1, 7, 64, learned.num_tokens, 2048]), rng.choice([0.0, 1e-6, 0.01, 1.0, 100.0]))
        assert MULTIPLE <= learned.num_tokens <= 2048
        assert learned.num_tokens % MULTIPLE == 0
