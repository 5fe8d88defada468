"""Callers take turns in the engine, whoever of them asks for most."""

from __future__ import annotations

import random

import msgspec
import pytest

from server.engine.engine import DecoderEngine
from server.protocol import Generate
from tests.engine.driving import Outcome, generate, make_engine, run_alone, step
from tests.engine.fake_runner import FakeRunner
from tests.fuzz.scale import SCALE

PROMPT = [3, 1, 4, 1, 5]


def of(who: str, name: str, prompt: list[int] | None = None, **params: int) -> Generate:
    params.setdefault("max_new_tokens", 10)
    return msgspec.structs.replace(generate(name, prompt or PROMPT, **params), caller=who)


def steps_until_done(engine: DecoderEngine, name: str, outcomes: dict[str, Outcome]) -> int:
    num_steps = 0
    while name not in outcomes or not outcomes[name].is_final:
        step(engine, outcomes)
        num_steps += 1
    return num_steps


def drain(engine: DecoderEngine, outcomes: dict[str, Outcome]) -> None:
    while engine.has_work:
        step(engine, outcomes)
    assert engine.blocks.num_used == 0


def num_steps_beside(num_others: int) -> int:
    """Steps that one caller's request takes while another has this many."""
    engine, outcomes = make_engine(FakeRunner(256), max_running=4, max_batch_tokens=32), dict[str, Outcome]()
    for i in range(num_others):
        engine.add(of("flood", f"flood {i}", [i, *PROMPT], max_new_tokens=30))
    for _ in range(4):
        step(engine, outcomes)
    engine.add(of("other", "other"))
    return steps_until_done(engine, "other", outcomes)


def test_a_callers_request_takes_as_long_beside_eighty_requests_as_beside_four() -> None:
    assert num_steps_beside(80) <= 1.5 * num_steps_beside(4)


def test_two_floods_are_served_alike() -> None:
    engine, outcomes = make_engine(FakeRunner(256), max_running=1), dict[str, Outcome]()
    for i in range(20):
        engine.add(of("first", f"first {i}"))
    for i in range(20):
        engine.add(of("second", f"second {i}"))
    while sum(outcome.is_final for outcome in outcomes.values()) < 20:
        step(engine, outcomes)
    num_first = sum(name.startswith("first") for name in outcomes)
    assert 8 <= num_first <= 12


def test_newcomers_do_not_keep_a_caller_out_for_ever() -> None:
    engine, outcomes = make_engine(FakeRunner(256), max_running=1), dict[str, Outcome]()
    for i in range(10):
        engine.add(of("old", f"old {i}", max_new_tokens=20))
    for i in range(200):
        engine.add(of(f"new {i}", f"new {i}", max_new_tokens=1))
        step(engine, outcomes)
    assert sum(outcome.is_final for name, outcome in outcomes.items() if name.startswith("old")) >= 2


def test_a_request_that_made_way_for_another_caller_gives_the_same_tokens() -> None:
    engine, outcomes = make_engine(FakeRunner(256), max_running=2), dict[str, Outcome]()
    commands = [of("flood", f"flood {i}", [i, *PROMPT]) for i in range(3)]
    for command in commands:
        engine.add(command)
    for _ in range(3):
        step(engine, outcomes)
    engine.add(of("other", "other"))
    assert step(engine, outcomes).num_preemptions == 1
    assert engine.scheduler.num_running == 2
    drain(engine, outcomes)
    for command in commands:
        assert outcomes[command.request_id].token_ids == run_alone(command).token_ids


def test_callers_of_one_request_each_do_not_displace_one_another() -> None:
    engine, outcomes = make_engine(FakeRunner(256), max_running=2), dict[str, Outcome]()
    for i in range(5):
        engine.add(of(f"caller {i}", f"request {i}"))
    while engine.has_work:
        assert step(engine, outcomes).num_preemptions == 0
    assert len(outcomes) == 5


def test_nothing_is_remembered_of_callers_that_have_left() -> None:
    engine, outcomes = make_engine(), dict[str, Outcome]()
    for i in range(20):
        engine.add(of(f"caller {i}", f"request {i}", max_new_tokens=2))
    engine.abort("request 19")
    drain(engine, outcomes)
    assert engine.scheduler._waiting._shares == {}


def preemptions_beside(*, wide: int, narrow: int, num_steps: int = 40) -> tuple[int, DecoderEngine]:
    """How often somebody gives way to a caller with small requests, beside two of ``wide`` outputs each."""
    engine = make_engine(FakeRunner(512), max_running=2 * wide + narrow, max_batch_tokens=128)
    outcomes = dict[str, Outcome]()
    options = {"do_sample": True, "seed": 1, "max_new_tokens": 60}
    for i in range(2):
        engine.add(of("wide", f"wide {i}", [i, *PROMPT], num_return_sequences=wide, **options))
    for i in range(narrow):
        engine.add(of("narrow", f"narrow {i}", [9, i, *PROMPT], max_new_tokens=60))
    step(engine, outcomes)
    assert engine.scheduler.num_running == 2 + narrow
    engine.add(of("narrow", "late", max_new_tokens=60))
    return sum(step(engine, outcomes).num_preemptions for _ in range(num_steps)), engine


def test_a_group_of_many_rows_that_gave_way_is_not_taken_back_at_once() -> None:
    """Its caller has fewer groups than the other one, and more rows."""
    num_preemptions, engine = preemptions_beside(wide=12, narrow=4)
    assert num_preemptions == 1
    assert engine.scheduler.find("late") is engine.scheduler._running.get("late")


@pytest.mark.parametrize("seed", range(5 * SCALE))
def test_groups_of_any_size_do_not_displace_one_another_in_turn(seed: int) -> None:
    """Each preemption lets a group in that has not run since it arrived or gave way itself."""
    numbers = random.Random(seed)
    engine, outcomes = make_engine(FakeRunner(2048), max_running=16, max_batch_tokens=256), dict[str, Outcome]()
    for i in range(30):
        options = {"do_sample": True, "seed": i, "max_new_tokens": numbers.choice([4, 20, 60])}
        caller, width = numbers.choice("abc"), numbers.choice([1, 1, 2, 5, 8])
        engine.add(of(caller, f"request {i}", [i, *PROMPT], num_return_sequences=width, **options))
    num_preemptions = num_steps = 0
    while engine.has_work:
        num_preemptions += step(engine, outcomes).num_preemptions
        num_steps += 1
    assert num_preemptions <= 60
    assert num_steps <= 600
