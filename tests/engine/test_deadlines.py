"""Requests whose time is over end with what they have, and compute nothing more."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest

from server.engine.deadlines import Deadlines
from server.engine.engine import DecoderEngine
from server.protocol import Generate
from tests.engine.driving import Outcome, generate, make_engine, run_alone, step
from tests.engine.fake_runner import FakeRunner

PROMPT = [3, 1, 4, 1, 5]


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def due(command: Generate, after_s: float) -> Generate:
    return msgspec.structs.replace(command, deadline_s=100.0 + after_s)


def engine_with(clock: Clock, runner: FakeRunner | None = None, **limits: int) -> DecoderEngine:
    return make_engine(runner, deadlines=Deadlines(clock), **limits)


def finish(engine: DecoderEngine, outcomes: dict[str, Outcome]) -> None:
    while engine.has_work:
        step(engine, outcomes)
    assert engine.blocks.num_used == 0


def test_an_output_ends_with_the_tokens_that_it_has(clock: Clock) -> None:
    command = generate("r", PROMPT, max_new_tokens=30)
    engine, outcomes = engine_with(clock), dict[str, Outcome]()
    engine.add(due(command, 5))
    for _ in range(4):
        step(engine, outcomes)
    clock.now_s += 5
    finish(engine, outcomes)
    assert outcomes["r"].finish_reason == "max_time"
    assert len(outcomes["r"].token_ids) == 4
    assert outcomes["r"].token_ids == run_alone(command).token_ids[:4]


def test_a_request_that_waited_too_long_fails_without_a_prefill(clock: Clock) -> None:
    runner = FakeRunner()
    engine, outcomes = engine_with(clock, runner, max_running=1), dict[str, Outcome]()
    engine.add(generate("first", PROMPT, max_new_tokens=8))
    engine.add(due(generate("late", [7] * 12), 5))
    step(engine, outcomes)
    clock.now_s += 5
    finish(engine, outcomes)
    assert outcomes["late"].failure == "deadline_exceeded"
    assert all(7 not in row.token_ids for rows in runner.batches for row in rows if len(row.token_ids) > 1)


def test_a_prompt_that_is_being_computed_is_given_up(clock: Clock) -> None:
    engine, outcomes = engine_with(clock), dict[str, Outcome]()
    engine.add(due(generate("long", [5] * 100), 5))
    step(engine, outcomes)
    clock.now_s += 5
    finish(engine, outcomes)
    assert outcomes["long"].failure == "deadline_exceeded"


def test_every_sample_ends(clock: Clock) -> None:
    engine, outcomes = engine_with(clock), dict[str, Outcome]()
    engine.add(due(generate("r", PROMPT, max_new_tokens=30, num_return_sequences=3, do_sample=True, seed=1), 5))
    for _ in range(4):
        step(engine, outcomes)
    clock.now_s += 5
    finish(engine, outcomes)
    assert {outcome.finish_reason for outcome in outcomes.values()} == {"max_time"}
    assert len(outcomes) == 3
    assert all(outcome.token_ids for outcome in outcomes.values())


@pytest.mark.parametrize("groups", [1, 2])
def test_a_beam_search_answers_the_best_so_far(clock: Clock, groups: int) -> None:
    options = {"num_beam_groups": 2, "diversity_penalty": 0.5} if groups == 2 else {}
    engine, outcomes = engine_with(clock), dict[str, Outcome]()
    command = generate("r", PROMPT, max_new_tokens=30, num_beams=4, num_return_sequences=2, **options)
    engine.add(due(command, 5))
    for _ in range(6):
        step(engine, outcomes)
    clock.now_s += 5
    finish(engine, outcomes)
    assert [outcome.finish_reason for outcome in outcomes.values()] == ["max_time"] * 2
    first, second = outcomes["r"], outcomes["r#1"]
    assert len(first.token_ids) == len(second.token_ids) == 6
    assert first.score is not None and second.score is not None and first.score >= second.score


def test_a_beam_search_that_is_stopped_answers_what_its_length_would_have_ended(clock: Clock) -> None:
    options = {"num_beams": 3, "num_return_sequences": 3}
    shorter, outcomes = engine_with(clock), dict[str, Outcome]()
    shorter.add(generate("r", PROMPT, max_new_tokens=5, **options))
    finish(shorter, outcomes)
    engine, stopped = engine_with(clock), dict[str, Outcome]()
    engine.add(due(generate("r", PROMPT, max_new_tokens=30, **options), 5))
    for _ in range(5):
        step(engine, stopped)
    clock.now_s += 5
    finish(engine, stopped)
    assert {name: o.token_ids for name, o in stopped.items()} == {name: o.token_ids for name, o in outcomes.items()}
    assert {name: o.score for name, o in stopped.items()} == {name: o.score for name, o in outcomes.items()}


def test_a_preempted_request_keeps_its_tokens(clock: Clock) -> None:
    engine, outcomes = engine_with(clock, FakeRunner(num_blocks=8)), dict[str, Outcome]()
    engine.add(generate("old", PROMPT, max_new_tokens=24))
    engine.add(due(generate("new", PROMPT[::-1], max_new_tokens=24), 5))
    while engine.scheduler.num_waiting == 0 or not outcomes:
        step(engine, outcomes)
    clock.now_s += 5
    finish(engine, outcomes)
    assert outcomes["new"].finish_reason == "max_time"
    assert outcomes["new"].token_ids
    assert outcomes["old"].finish_reason == "length"


def test_a_deadline_after_the_end_changes_nothing(clock: Clock) -> None:
    engine, outcomes = engine_with(clock), dict[str, Outcome]()
    engine.add(due(generate("r", PROMPT, max_new_tokens=3), 5))
    finish(engine, outcomes)
    clock.now_s += 5
    engine.add(generate("next", PROMPT, max_new_tokens=3))
    finish(engine, outcomes)
    assert outcomes["r"].finish_reason == outcomes["next"].finish_reason == "length"
