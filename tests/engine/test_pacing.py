"""Prompts that come in do not hold running streams up, on a clock that only the work moves."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import pytest
import torch

from server.engine import engine as engine_module
from server.engine.batch_inputs import Row
from server.engine.pacing import FEW_WAITING, LEAST_TOKENS, MOST_STEPS_UNSEEN, STRETCH, Pacing
from server.protocol import Generate
from server.token_budget import TokenBudget
from tests.engine.driving import Outcome, generate, make_engine, run, run_alone, step
from tests.engine.fake_runner import FakeRunner

Cost = Callable[[int, int], float]
"""Seconds of a step with so many rows that get one token and so many prompt tokens."""

COSTS: dict[str, Cost] = {
    "a cpu in bfloat16": lambda rows, tokens: 0.020 + 0.0006 * rows + 0.0004 * tokens,
    "a fast decode": lambda rows, tokens: 0.004 + 0.0002 * rows + 0.0003 * tokens,
    "tokens that are nearly free": lambda rows, tokens: 0.010 + 0.0001 * rows + 0.00001 * tokens,
    "small products that take another path": lambda rows, tokens: 0.010 + 0.004 * (tokens > 0) + 0.0002 * tokens,
    "tokens by tiles of 64": lambda rows, tokens: 0.020 + 0.008 * -(-tokens // 64),
}


def decide(pacing: Pacing, cost: Cost, num_rows: int, num_steps: int, num_waiting: int = 1) -> list[int]:
    """The prompt tokens of so many steps, prompts being there without an end."""
    chosen = []
    for _ in range(num_steps):
        num_tokens = min(pacing.num_prompt_tokens(num_rows, num_waiting), 2048)
        pacing.observe(num_rows, num_tokens, cost(num_rows, num_tokens))
        chosen.append(num_tokens)
    return chosen


@pytest.mark.parametrize("num_rows", [1, 8, 32])
@pytest.mark.parametrize("cost", COSTS.values(), ids=list(COSTS))
def test_steps_with_prompts_come_close_to_the_bound_and_stay_below_it(cost: Cost, num_rows: int) -> None:
    plain_s = cost(num_rows, 0)
    chosen = decide(Pacing(), cost, num_rows, 100)
    for num_tokens in chosen[40:]:
        assert num_tokens <= LEAST_TOKENS or cost(num_rows, num_tokens) <= 1.1 * STRETCH * plain_s
    useful = [num_tokens for num_tokens in range(0, 2049, 64) if cost(num_rows, num_tokens) <= STRETCH * plain_s]
    assert max(chosen[40:]) >= min(2048, useful[-1]) // 2


def test_what_is_not_known_yet_is_tried_in_small_steps() -> None:
    chosen = decide(Pacing(), COSTS["tokens that are nearly free"], 1, 30)
    seen = 0
    for num_tokens in chosen:
        assert num_tokens <= max(LEAST_TOKENS, 2 * seen)
        seen = max(seen, num_tokens)
    assert seen > 512


def test_the_first_guess_is_the_pace_of_prompts_alone() -> None:
    pacing = Pacing()
    pacing.observe(0, 512, 0.2)
    pacing.observe(4, 0, 0.05)
    assert pacing.num_prompt_tokens(4, 1) == int(0.05 * (STRETCH - 1.0) / (0.2 / 512)) // LEAST_TOKENS * LEAST_TOKENS


def test_steps_that_were_interrupted_change_nothing() -> None:
    rng = random.Random(3)
    cost = COSTS["a cpu in bfloat16"]
    pacing = Pacing()
    decide(pacing, lambda rows, tokens: cost(rows, tokens) * (8.0 if rng.random() < 0.15 else 1.0), 8, 300)
    calm = decide(Pacing(), cost, 8, 50)[-1]
    assert abs(pacing.num_prompt_tokens(8, 1) - calm) <= LEAST_TOKENS


def test_a_machine_that_becomes_slower_is_noticed() -> None:
    pacing, cost = Pacing(), COSTS["a cpu in bfloat16"]
    decide(pacing, cost, 8, 100)
    chosen = decide(pacing, lambda rows, tokens: cost(rows, tokens) + 0.002 * tokens, 8, 100)
    assert chosen[-1] == LEAST_TOKENS


def test_prompts_go_on_in_nearly_every_step() -> None:
    for cost in COSTS.values():
        chosen = decide(Pacing(), cost, 8, 1000)
        assert chosen.count(0) <= 1000 / MOST_STEPS_UNSEEN + 8
        assert all(a or b for a, b in itertools.pairwise(chosen))


@pytest.mark.parametrize("num_rows", [4, 16])
def test_the_more_requests_wait_the_more_they_count_however_many_run(num_rows: int) -> None:
    pacing = Pacing()
    decide(pacing, COSTS["a cpu in bfloat16"], num_rows, 50)
    waiting = [1, FEW_WAITING, 4 * FEW_WAITING, 16 * FEW_WAITING]
    chosen = [pacing.num_prompt_tokens(num_rows, num_waiting) for num_waiting in waiting]
    assert chosen[0] == chosen[1] < chosen[2] < chosen[3]


class Clocked(FakeRunner):
    """Its steps take the time that ``cost`` says, on its own clock."""

    def __init__(self, cost: Cost) -> None:
        super().__init__(num_blocks=2048)
        self.cost = cost
        self.now = 0.0

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        num_single = sum(len(row.token_ids) == 1 for row in rows)
        self.now += self.cost(num_single, sum(len(row.token_ids) for row in rows) - num_single)
        return super().forward(rows)


def long_prompt(request_id: str) -> Generate:
    rng = random.Random(request_id)
    return generate(request_id, [rng.randrange(60) for _ in range(200)], max_new_tokens=2)


@pytest.mark.parametrize("is_paced", [True, False])
def test_running_streams_keep_their_pace_while_long_prompts_come_in(
    monkeypatch: pytest.MonkeyPatch, is_paced: bool
) -> None:
    runner = Clocked(lambda rows, tokens: 0.010 + 0.0005 * rows + 0.0004 * tokens)
    monkeypatch.setattr(engine_module, "perf_counter", lambda: runner.now)
    limits = {"max_model_len": 512, "max_batch_tokens": 256, "max_running": 16}
    engine = make_engine(runner, pacing=Pacing() if is_paced else None, **limits)
    streams = [generate(f"stream {i}", [i, 1, 2], max_new_tokens=300) for i in range(4)]
    for command in streams:
        engine.add(command)
    outcomes: dict[str, Outcome] = {}
    gaps = []
    prompts = []
    for i in range(280):
        if i >= 40 and i % 20 == 0:
            prompts.append(long_prompt(f"prompt {i}"))
            engine.add(prompts[-1])
        before = runner.now
        step(engine, outcomes)
        gaps.append(runner.now - before)
    quiet = sorted(gaps[2:40])[19]
    worst = sorted(gaps[40:])[-len(gaps[40:]) // 20]
    assert (worst < 2.5 * quiet) == is_paced
    # Nor do the prompts starve: each is done before the third one after it comes.
    assert all(outcomes[prompt.request_id].is_final for prompt in prompts[:-3])
    outcomes = {**outcomes, **finish(engine, outcomes)}
    for command in [*streams[:1], *prompts[:3]]:
        alone = run(make_engine(Clocked(runner.cost), **limits), [command])[command.request_id]
        assert outcomes[command.request_id].token_ids == alone.token_ids


def finish(engine: engine_module.DecoderEngine, outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
    while engine.has_work:
        step(engine, outcomes)
    return outcomes


def test_a_budget_that_was_set_stays_the_upper_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Clocked(lambda rows, tokens: 0.010 + 1e-6 * tokens)
    monkeypatch.setattr(engine_module, "perf_counter", lambda: runner.now)
    engine = make_engine(runner, pacing=Pacing(), max_model_len=512, max_batch_tokens=48)
    run(engine, [generate("stream", [1, 2], max_new_tokens=60), *(long_prompt(str(i)) for i in range(3))])
    sizes = [sum(len(row.token_ids) for row in rows) for rows in runner.batches]
    assert max(sizes) == 48


def test_prompts_alone_take_the_whole_budget_at_once() -> None:
    runner = FakeRunner(256)
    run(make_engine(runner, pacing=Pacing(), max_model_len=512, max_batch_tokens=100), [long_prompt("a")])
    assert [len(rows[0].token_ids) for rows in runner.batches] == [100, 100, 1]


def test_fixed_cuts_know_no_pace() -> None:
    command = generate("a", list(range(1, 50)), max_new_tokens=20)
    runner = FakeRunner()
    engine = make_engine(runner, pacing=Pacing(), deterministic=True, max_batch_tokens=256)
    outcomes = run(engine, [command, generate("b", [1, 2], max_new_tokens=30)])
    assert outcomes["a"].token_ids == run_alone(command).token_ids
    assert max(len(row.token_ids) for rows in runner.batches for row in rows) == 49


def learning_budget() -> TokenBudget:
    return TokenBudget(first=32, usual=64, most=256, step_s=0.05)


@pytest.mark.parametrize(("token_s", "largest"), [(0.0001, 256), (0.001, 64), (0.004, 32)])
def test_prompts_are_cut_by_measured_speed_and_tokens_stay_the_same(
    monkeypatch: pytest.MonkeyPatch, token_s: float, largest: int
) -> None:
    runner = Clocked(lambda rows, tokens: 0.002 * (rows > 0 or tokens > 0) + token_s * (rows + tokens))
    monkeypatch.setattr(engine_module, "perf_counter", lambda: runner.now)
    limits = {"max_model_len": 512, "max_batch_tokens": 256, "max_running": 16}
    engine = make_engine(runner, token_budget=learning_budget(), **limits)
    prompts = [long_prompt(f"prompt {i}") for i in range(24)]
    outcomes: dict[str, Outcome] = {}
    for some in (prompts[i : i + 4] for i in range(0, len(prompts), 4)):
        outcomes |= run(engine, some)
    sizes = [sum(len(row.token_ids) for row in rows) for rows in runner.batches]
    assert sizes[0] == 32
    assert max(sizes) <= largest
    assert max(sizes) > largest / 2
    for command in prompts[:4]:
        alone = run(make_engine(Clocked(runner.cost), **limits), [command])[command.request_id]
        assert outcomes[command.request_id].token_ids == alone.token_ids


def test_fixed_cuts_stay_where_they_are_under_a_learned_budget() -> None:
    command = long_prompt("a")
    runner = FakeRunner(256)
    engine = make_engine(runner, token_budget=learning_budget(), deterministic=True, max_model_len=512)
    run(engine, [command])
    assert [len(rows[0].token_ids) for rows in runner.batches][:2] == [128, 72]
