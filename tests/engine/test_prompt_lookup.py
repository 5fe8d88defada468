"""Streams whose next tokens are guessed are the streams that they are without."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from server.engine.pacing import Pacing
from server.engine.prompt_lookup import DRAFT_LENGTHS, MAX_ROWS, MOST_DECLINED, Drafter, find
from server.protocol import Generate, Stats
from tests.engine.drafting import EagerDrafter, Known, RepeatingRunner
from tests.engine.driving import Outcome, generate, make_engine, run, run_preempted, step
from tests.engine.fake_runner import POISON, VOCAB_SIZE, FakeRunner
from tests.engine.test_rewinds import LETTERS

torch.set_num_threads(1)

ROOM = {"max_model_len": 256, "max_batch_tokens": 128}

RULES: list[dict[str, Any]] = [
    {},
    {"logprobs": True, "top_n_tokens": 3},
    {"repetition_penalty": 1.2},
    {"presence_penalty": 0.4, "frequency_penalty": 0.3, "penalty_scope": 7},
    {"no_repeat_ngram_size": 5, "min_new_tokens": 30},
    {"dry_multiplier": 0.8, "dry_allowed_length": 6},
    {"sequence_bias": (((1, 2), -2.0), ((5,), 1.0)), "exponential_decay_length_penalty": (10, 1.1)},
    {"forced_bos_token_id": 5, "forced_eos_token_ids": (3,), "begin_suppress_tokens": (1, 2)},
    {"banned_phrases": ("ab", "dd", "ge")},
    {"guidance_scale": 1.5},
    {"num_beams": 3},
    {"num_return_sequences": 3, "do_sample": True},
]
DRAWS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "temperature": 0.4},
    {"do_sample": True, "temperature": 0.7, "top_k": 8, "top_p": 0.9},
    {"do_sample": True, "temperature": 0.5, "xtc_probability": 0.5, "xtc_threshold": 0.05, "logprobs": True},
]


def fuzzed(rng: random.Random, num_commands: int, rules: list[dict[str, Any]]) -> list[Generate]:
    commands = []
    for i in range(num_commands):
        prompt = [rng.randrange(12) for _ in range(rng.randrange(1, 20))]
        params = {"seed": rng.getrandbits(63), **rng.choice(DRAWS), **rng.choice(rules)}
        if params.get("num_beams", 1) > 1 or "exponential_decay_length_penalty" in params:
            params["do_sample"] = False
        stop = tuple(rng.sample(range(VOCAB_SIZE), rng.choice([0, 0, 1, 3])))
        params = {"max_new_tokens": rng.randrange(1, 60), "stop_token_ids": stop, **params}
        commands.append(generate(str(i), prompt * rng.choice([1, 3]), **params))
    return commands


def serve(commands: list[Generate], drafter: Drafter | None, **limits: Any) -> tuple[dict[str, Outcome], int]:
    """What comes out, and how many drafted tokens came true."""
    runner = RepeatingRunner(limits.pop("num_blocks", 512))
    engine = make_engine(runner, drafter=drafter, vocabulary=LETTERS, **{**ROOM, **limits})
    for command in commands:
        engine.add(command)
    outcomes: dict[str, Outcome] = {}
    num_accepted = 0
    while engine.has_work:
        num_accepted += step(engine, outcomes).num_accepted
    assert engine.blocks.num_used == 0
    assert runner.live == {}
    return outcomes, num_accepted


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_guesses_change_no_token(rule: dict[str, Any]) -> None:
    num_accepted = 0
    for seed in range(4):
        commands = fuzzed(random.Random(seed), 3, [rule])
        expected, _ = serve(commands, None)
        outcomes, num_true = serve(commands, EagerDrafter(seed))
        assert outcomes == expected
        num_accepted += num_true
    is_excluded = bool({"banned_phrases", "guidance_scale", "num_beams"} & rule.keys())
    assert (num_accepted > 0) != is_excluded


@pytest.mark.parametrize("seed", range(8))
def test_requests_of_all_kinds_together_are_the_same_with_guesses(seed: int) -> None:
    rng = random.Random(seed)
    commands = fuzzed(rng, 8, RULES)
    limits = {
        "max_running": rng.choice([3, 8]),
        "max_batch_tokens": rng.choice([8, 16, 64]),
        "prefix_cache": rng.random() < 0.5,
        "deterministic": rng.random() < 0.3,
    }
    expected, _ = serve(commands, None, **limits)
    outcomes, _ = serve(commands, EagerDrafter(seed), **limits)
    for outcome in (*expected.values(), *outcomes.values()):
        outcome.num_cached_tokens = None
        outcome.logprobs = [round(value, 4) for value in outcome.logprobs]
        outcome.top_logprobs = [
            [(told.token_id, round(told.logprob, 4)) for told in place] for place in outcome.top_logprobs
        ]
        outcome.score = outcome.score and round(outcome.score, 4)
    assert outcomes == expected


def test_text_that_repeats_itself_takes_fewer_steps() -> None:
    command = generate("r", [1, 2, 3, 4] * 8, max_new_tokens=100)
    steps = {}
    for drafter in (None, Drafter(Known())):
        runner = RepeatingRunner(64)
        run(make_engine(runner, drafter=drafter, **ROOM), [command])
        steps[drafter] = len(runner.batches)
    plain, drafted = steps.values()
    assert plain == 100
    assert drafted < 70


def test_a_draft_never_goes_past_what_the_budget_and_the_longest_output_allow() -> None:
    runner = RepeatingRunner(64)
    commands = [generate(str(i), [1, 2, 3] * 4, max_new_tokens=9) for i in range(3)]
    engine = make_engine(runner, drafter=EagerDrafter(), max_batch_tokens=8, max_model_len=64)
    run(engine, commands)
    assert max(sum(len(row.token_ids) for row in rows) for rows in runner.batches) <= 8
    assert max(row.num_computed + len(row.token_ids) for rows in runner.batches for row in rows) == 12 + 9 - 1


def test_an_output_that_ends_in_a_draft_ends_there() -> None:
    command = generate("r", [1, 2, 3, 4] * 8, max_new_tokens=60)
    expected = serve([command], None)[0]["r"].token_ids
    for place in range(1, 40):
        if expected[place] not in expected[:place]:
            ends = generate("r", [1, 2, 3, 4] * 8, max_new_tokens=60, stop_token_ids=(expected[place],))
            outcome = serve([ends], EagerDrafter(place))[0]["r"]
            assert (outcome.token_ids, outcome.finish_reason) == (expected[: place + 1], "stop")
        shorter = generate("r", [1, 2, 3, 4] * 8, max_new_tokens=place)
        outcome = serve([shorter], EagerDrafter(place))[0]["r"]
        assert (outcome.token_ids, outcome.finish_reason) == (expected[:place], "length")


@pytest.mark.parametrize("seed", range(4))
def test_sequences_that_are_preempted_between_drafts_are_the_same(seed: int) -> None:
    commands = fuzzed(random.Random(seed + 50), 6, RULES[:6])
    commands = [generate(c.request_id, c.prompt_ids[:20], max_new_tokens=40, seed=i) for i, c in enumerate(commands)]
    expected, _ = serve(commands, None)
    engine = make_engine(RepeatingRunner(24), drafter=EagerDrafter(seed), **ROOM)
    outcomes = run_preempted(engine, commands)
    assert {name: one.token_ids for name, one in outcomes.items()} == {
        name: one.token_ids for name, one in expected.items()
    }


@pytest.mark.parametrize("num_steps", [1, 3, 7])
def test_an_abort_between_drafts_frees_every_block(num_steps: int) -> None:
    runner = RepeatingRunner(64)
    engine = make_engine(runner, drafter=EagerDrafter(), **ROOM)
    engine.add(generate("r", [1, 2, 3] * 5, max_new_tokens=100))
    for _ in range(num_steps):
        step(engine, {})
    engine.abort("r")
    engine.check()
    assert engine.blocks.num_used == 0
    assert runner.live == {}


def test_blocks_that_only_a_draft_needed_are_given_back_after_the_step() -> None:
    engine = make_engine(RepeatingRunner(64), drafter=EagerDrafter(), **ROOM)
    engine.add(generate("r", [1, 2, 3] * 5, max_new_tokens=100))
    outcomes: dict[str, Outcome] = {}
    while engine.has_work:
        step(engine, outcomes)
        num_known = 15 + len(outcomes["r"].token_ids)
        assert engine.blocks.num_used <= -(-num_known // 4)


def test_drafts_preempt_nobody() -> None:
    commands = [generate(str(i), [1, 2, 3, 4] * 4, max_new_tokens=17) for i in range(2)]
    engine = make_engine(RepeatingRunner(16), drafter=EagerDrafter(), prefix_cache=False, **ROOM)
    for command in commands:
        engine.add(command)
    num_preemptions = 0
    while engine.has_work:
        num_preemptions += step(engine, {}).num_preemptions
    assert num_preemptions == 0


class FailingDrafts(RepeatingRunner):
    """Gives nothing finite where a row computes more than one token behind its prompt."""

    def forward(self, rows: Any) -> torch.Tensor:
        logits = super().forward(rows)
        if any(row.num_computed and len(row.token_ids) > 1 for row in rows):
            logits[:] = torch.nan
        return logits


def test_a_draft_that_makes_the_model_fail_fails_nobody() -> None:
    command = generate("r", [1, 2, 3, 4] * 4, max_new_tokens=40)
    runner = FailingDrafts(64)
    outcome = run(make_engine(runner, drafter=EagerDrafter(), **ROOM), [command])["r"]
    assert outcome.token_ids == serve([command], None)[0]["r"].token_ids
    assert sum(len(rows[0].token_ids) > 1 for rows in runner.batches) == 2, "it goes on drafting"


def test_a_sequence_that_fails_by_itself_fails_with_drafts_too() -> None:
    command = generate("r", [1, 2, 3, 4] * 4, max_new_tokens=40, do_sample=True, temperature=100.0, seed=1)
    command = generate("r", [7, 8] * 8, logit_bias={POISON: 1e9}, allowed_token_ids=(POISON, 8), max_new_tokens=9)
    assert serve([command], EagerDrafter())[0]["r"].failure == "numerical_error"


@pytest.mark.parametrize(
    ("runner", "limits"),
    [
        (RepeatingRunner(64, can_reuse_blocks=False), {}),
        (FakeRunner(64), {"deterministic": True}),
    ],
    ids=["cannot go back", "rows feel one another"],
)
def test_nothing_is_drafted_where_it_could_not_be_taken_back_or_would_be_felt(
    runner: FakeRunner, limits: dict[str, Any]
) -> None:
    run(make_engine(runner, drafter=EagerDrafter(), **ROOM, **limits), [generate("r", [1, 2, 3] * 9)])
    assert all(len(row.token_ids) == 1 for rows in runner.batches for row in rows if row.num_computed >= 27)


def test_a_full_batch_is_not_even_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(Drafter, "_guess", lambda *_: asked.append(1))
    commands = [generate(str(i), [1, 2, 3] * 4) for i in range(MAX_ROWS + 1)]
    run(make_engine(RepeatingRunner(128), drafter=Drafter(Known()), max_running=16, max_batch_tokens=128), commands)
    assert not asked


def test_a_step_tells_what_was_drafted_and_what_came_true() -> None:
    engine = make_engine(RepeatingRunner(64), drafter=EagerDrafter(), **ROOM)
    engine.add(generate("r", [1, 2, 3, 4] * 8, max_new_tokens=60))
    num_told = 0
    while engine.has_work:
        *replies, stats = engine.step()
        assert isinstance(stats, Stats)
        assert stats.num_accepted <= stats.num_drafted <= DRAFT_LENGTHS[0]
        if num_told:
            assert stats.batch_tokens == 1 + stats.num_drafted
            assert num_new(replies) in (stats.num_accepted, stats.num_accepted + 1)
        num_told += num_new(replies)
    assert num_told == 60


def num_new(replies: list[Any]) -> int:
    return sum(len(reply.token_ids) for reply in replies)


def test_what_followed_the_last_three_tokens_last_is_found_before_what_followed_two() -> None:
    assert find(np.array([1, 2, 3, 40, 9, 2, 3, 50, 1, 2, 3]), 2).tolist() == [40, 9]
    assert find(np.array([1, 2, 3, 40, 1, 2, 3, 50, 1, 2, 3]), 2).tolist() == [50, 1]
    assert find(np.array([9, 2, 3, 50, 1, 2, 3]), 9).tolist() == [50, 1, 2, 3, 50, 1, 2, 3, 50]
    assert find(np.array([2, 3, 50, 1, 2, 3]), 1).tolist() == [50]
    assert find(np.array([5, 5, 5]), 3).tolist() == [5, 5, 5]
    for ids in ([], [1], [1, 1], [1, 2, 3], [3, 1, 2, 3]):
        assert find(np.array(ids, dtype=np.int64), 4).tolist() == []
    assert find(np.array([1, 2, 1, 2]), 0).tolist() == []


class Measured(Pacing):
    def __init__(self, plain_s: float | None) -> None:
        super().__init__()
        self.known = plain_s

    def plain_s(self, num_rows: int) -> float | None:
        return self.known


def num_drafted(drafter: Drafter, command: Generate, cost: float) -> list[int]:
    """Of each step, on a machine where a drafted token costs so much of a step."""
    engine = make_engine(RepeatingRunner(256), drafter=drafter, max_model_len=1024, max_batch_tokens=128)
    engine.add(command)
    sizes = []
    while engine.has_work:
        stats = engine.step()[-1]
        assert isinstance(stats, Stats)
        sizes.append(stats.num_drafted)
        if stats.num_drafted:
            drafter.observe(1, stats.num_drafted, 1.0 + cost * stats.num_drafted)
    return sizes


CIRCLES = generate("r", [1, 2, 3, 4] * 8, max_new_tokens=600)


def test_drafts_that_cost_too_much_stop() -> None:
    sizes = num_drafted(Drafter(Measured(1.0)), CIRCLES, cost=2.0)
    assert sum(size > 0 for size in sizes) <= 2 + 600 / MOST_DECLINED


def test_cheap_drafts_of_text_that_repeats_itself_become_long() -> None:
    sizes = num_drafted(Drafter(Measured(1.0)), CIRCLES, cost=0.02)
    assert sizes[-10:].count(8) > 5


def test_nothing_is_drafted_before_a_step_without_drafts_was_seen() -> None:
    assert sum(num_drafted(Drafter(Measured(None)), CIRCLES, cost=0.02)) == 0


def test_free_text_is_hardly_drafted() -> None:
    command = generate("r", [1, 2, 3, 4] * 8, max_new_tokens=600, do_sample=True, temperature=1.5, seed=3)
    sizes = num_drafted(Drafter(Measured(1.0)), command, cost=0.3)
    assert sum(sizes) < 60
