"""A caller with many rows lets another one's short prompt go first."""

from __future__ import annotations

from collections import Counter

import msgspec

from server.engine.engine import DecoderEngine
from server.protocol import Generate
from server.token_budget import TokenBudget
from tests.engine.driving import Outcome, generate, make_engine, run, run_alone, step
from tests.engine.fake_runner import FakeRunner

NUM_ROWS = 12
PROMPT = [3, 1, 4, 1, 5]


def of(who: str, name: str, prompt: list[int] | None = None, max_new_tokens: int = 30) -> Generate:
    return msgspec.structs.replace(generate(name, prompt or PROMPT, max_new_tokens=max_new_tokens), caller=who)


def flood() -> list[Generate]:
    return [of("flood", f"flood {i}", [i, *PROMPT]) for i in range(NUM_ROWS)]


def flooded(runner: FakeRunner, outcomes: dict[str, Outcome]) -> DecoderEngine:
    """An engine in which one caller has many rows, each with a token or more."""
    engine = make_engine(runner, max_running=NUM_ROWS + 4, max_batch_tokens=64)
    for command in flood():
        engine.add(command)
    while len(outcomes) < NUM_ROWS:
        step(engine, outcomes)
    return engine


def num_rows(runner: FakeRunner) -> int:
    """Of the last step."""
    return len(runner.batches[-1])


def test_a_step_with_another_callers_first_token_has_no_rows_of_a_flood() -> None:
    runner, outcomes = FakeRunner(256), dict[str, Outcome]()
    engine = flooded(runner, outcomes)
    engine.add(of("other", "other"))
    step(engine, outcomes)
    assert len(outcomes["other"].token_ids) == 1
    assert num_rows(runner) == 1


def test_rows_that_gave_way_are_in_the_next_step() -> None:
    runner, outcomes = FakeRunner(256), dict[str, Outcome]()
    engine = flooded(runner, outcomes)
    for i in range(10):
        engine.add(of(f"other {i}", f"other {i}", max_new_tokens=1))
        step(engine, outcomes)
        before = len(outcomes["flood 0"].token_ids)
        engine.add(of(f"later {i}", f"later {i}", max_new_tokens=1))
        step(engine, outcomes)
        assert len(outcomes["flood 0"].token_ids) == before + 1


def test_rows_that_give_way_get_the_same_tokens() -> None:
    outcomes = dict[str, Outcome]()
    engine = flooded(FakeRunner(256), outcomes)
    number = 0
    while engine.has_work:
        if number < 20:
            engine.add(of(f"other {number}", f"other {number}", max_new_tokens=2))
            number += 1
        step(engine, outcomes)
    for command in [*flood(), of("other 0", "other 0", max_new_tokens=2)]:
        assert outcomes[command.request_id].token_ids == run_alone(command).token_ids


def test_a_prompt_that_takes_longer_than_the_rows_does_not_hold_them_up() -> None:
    runner, outcomes = FakeRunner(256), dict[str, Outcome]()
    engine = flooded(runner, outcomes)
    engine.add(of("other", "other", list(range(NUM_ROWS + 1))))
    step(engine, outcomes)
    assert num_rows(runner) == NUM_ROWS + 1


def test_a_callers_own_requests_do_not_give_way_to_one_another() -> None:
    runner, outcomes = FakeRunner(256), dict[str, Outcome]()
    engine = flooded(runner, outcomes)
    engine.add(of("flood", "another of the flood"))
    step(engine, outcomes)
    assert num_rows(runner) == NUM_ROWS + 1


def test_callers_with_few_rows_do_not_give_way() -> None:
    runner, outcomes = FakeRunner(256), dict[str, Outcome]()
    engine = flooded(runner, outcomes)
    engine.add(of("small", "small"))
    step(engine, outcomes)
    step(engine, outcomes)
    engine.add(of("other", "other"))
    step(engine, outcomes)
    assert num_rows(runner) == 2


def test_several_requests_of_a_caller_begin_together_beside_a_full_batch() -> None:
    runner, outcomes = FakeRunner(256), dict[str, Outcome]()
    engine = make_engine(runner, max_running=NUM_ROWS, max_batch_tokens=64)
    for i in range(3 * NUM_ROWS):
        engine.add(of("flood", f"flood {i}", [i, *PROMPT]))
    while len(outcomes) < NUM_ROWS:
        step(engine, outcomes)
    others = [of("other", f"other {i}", [i], max_new_tokens=1) for i in range(3)]
    for command in others:
        engine.add(command)
    step(engine, outcomes)
    assert all(outcomes[command.request_id].is_final for command in others)


def test_a_caller_displaces_no_more_rows_than_leave_the_other_twice_as_many() -> None:
    runner, outcomes = FakeRunner(256), dict[str, Outcome]()
    engine = make_engine(runner, max_running=NUM_ROWS, max_batch_tokens=64)
    for who in ("first", "second"):
        for i in range(2 * NUM_ROWS):
            engine.add(of(who, f"{who} {i}", [i, *PROMPT]))
        for _ in range(4):
            step(engine, outcomes)
    running = Counter(group.caller for group in engine.scheduler._running.values())
    assert running == {"first": NUM_ROWS * 2 // 3, "second": NUM_ROWS // 3}


def test_rows_that_end_beside_two_floods_displace_no_others() -> None:
    engine, outcomes = make_engine(FakeRunner(256), max_running=NUM_ROWS, max_batch_tokens=64), dict[str, Outcome]()
    for i in range(4 * NUM_ROWS):
        for who in ("first", "second"):
            engine.add(of(who, f"{who} {i}", [i, *PROMPT], max_new_tokens=3 + i % 7))
    num_preemptions = 0
    while engine.has_work:
        num_preemptions += step(engine, outcomes).num_preemptions
    assert num_preemptions <= NUM_ROWS // 2


class KnownSteps(TokenBudget):
    """Of a machine on which each token takes 5 ms."""

    def __init__(self) -> None:
        super().__init__(first=512, usual=512, most=512, step_s=10.0)
        super().observe(512, 2.56)

    def observe(self, num_tokens: int, seconds: float, *, is_growth: bool = False) -> None:
        pass


def largest_step(callers: list[str]) -> int:
    """Tokens of the largest step of a flood of prompts that comes after a short request of each caller."""
    engine = make_engine(FakeRunner(256), max_running=NUM_ROWS, max_batch_tokens=512, token_budget=KnownSteps())
    outcomes = run(engine, [of(who, f"short {who}", max_new_tokens=2) for who in callers])
    for i in range(NUM_ROWS):
        engine.add(of("flood", f"flood {i}", [i] * 20, max_new_tokens=1))
    largest = 0
    while engine.has_work:
        largest = max(largest, step(engine, outcomes).batch_tokens)
    return largest


def test_steps_with_prompts_are_short_as_long_as_another_caller_may_come() -> None:
    assert largest_step(["flood", "other"]) == 16


def test_steps_with_one_callers_prompts_are_as_large_as_ever() -> None:
    assert largest_step(["flood"]) == NUM_ROWS * 20
