"""Sources that are encoded in parts of several steps: no cut changes a bit, and one that ends early leaves nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from server import machine
from server.engine.batch import Batch, Share
from server.engine.batch_inputs import IntArray
from server.engine.encoding import SourcePart
from server.engine.engine import DecoderEngine
from server.engine.executors.fused.pair_runner import FusedPairRunner
from server.engine.pacing import Pacing
from server.engine.prompt_lookup import Drafter
from server.engine.source_parts import MOST_BEGUN
from server.protocol import Generate
from tests.engine.driving import Outcome, run, run_preempted, step
from tests.engine.test_fused_pair_engine import MAX_SOURCE_LEN, bits, engine_of, read, runner_of, tiny
from tests.native import variants
from tests.parity import cases
from tests.tiny_encoder_decoders import KINDS

LONG = [[(7 * i + 31 * j) % 300 + 3 for i in range(60)] for j in range(8)]
SHORT = [44, 45, 46]


@pytest.fixture(autouse=True)
def best_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    variants.use("best", monkeypatch)


@pytest.fixture
def runner() -> FusedPairRunner:
    return fused(runner_of(tiny("marian")))


def fused(runner: Any) -> FusedPairRunner:
    assert isinstance(runner, FusedPairRunner)
    return runner


def command(request_id: str, source_ids: Sequence[int], *, family: str = "marian", **params: Any) -> Generate:
    params = {"max_new_tokens": 12, "end_token_ids": (), "logprobs": True, **params}
    [found] = read([cases.command(request_id, list(source_ids), **params)], family)
    return found


def every_kind(family: str = "marian") -> list[Generate]:
    kinds: dict[str, tuple[list[int], dict[str, Any]]] = {
        "greedy": (LONG[0], {}),
        "same source": (LONG[0], {"do_sample": True, "seed": 1}),
        "short": (SHORT, {}),
        "beams": (LONG[1], {"num_beams": 3}),
        "samples": (LONG[2][:41], {"do_sample": True, "seed": 2, "num_return_sequences": 3}),
    }
    return [command(name, source, family=family, **params) for name, (source, params) in kinds.items()]


@dataclass
class Watched:
    """What ``runner`` encodes."""

    runner: FusedPairRunner
    parts: list[SourcePart] = field(default_factory=list)
    most_begun: int = 0

    def __post_init__(self) -> None:
        encode = self.runner.encode

        def watched(parts: Sequence[SourcePart]) -> None:
            self.parts += parts
            encode(parts)
            self.most_begun = max(self.most_begun, self.runner.num_readings)

        self.runner.encode = watched  # type: ignore[method-assign]


def begin(engine: DecoderEngine, runner: FusedPairRunner, outcomes: dict[str, Outcome]) -> None:
    """Steps until a part of a source is encoded."""
    while not runner.num_readings:
        step(engine, outcomes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", KINDS)
def test_outputs_have_the_same_bits_for_every_budget_of_a_step(family: str, dtype: torch.dtype) -> None:
    runner = fused(runner_of(tiny(family, dtype)))
    commands = every_kind(family)
    whole: dict[str, Outcome] = {}
    for each in commands:
        whole |= run(engine_of(runner), [each])
    for budget in (3, 5, 8, 20, 50):
        watched = Watched(runner)
        assert bits(run(engine_of(runner, budget), commands)) == bits(whole)
        assert any(not part.is_last for part in watched.parts)


def test_running_streams_get_a_token_in_every_step_while_a_source_is_read(runner: FusedPairRunner) -> None:
    engine = engine_of(runner, 8)
    outcomes: dict[str, Outcome] = {}
    for i in range(4):
        engine.add(command(f"{i}", [i + 5, 6], max_new_tokens=60))
    for _ in range(10):
        step(engine, outcomes)
    engine.add(command("long", LONG[0]))
    num_steps = 0
    while "long" not in outcomes:
        before = [len(outcomes[f"{i}"].token_ids) for i in range(4)]
        step(engine, outcomes)
        assert [len(outcomes[f"{i}"].token_ids) for i in range(4)] == [num + 1 for num in before]
        num_steps += 1
    assert num_steps > 10


def test_a_step_may_read_a_part_of_a_source_and_nothing_else(runner: FusedPairRunner) -> None:
    engine = engine_of(runner, 8)
    outcomes: dict[str, Outcome] = {}
    engine.add(command("r", LONG[0]))
    stats = step(engine, outcomes)
    assert (stats.batch_size, stats.num_running, stats.prompt_tokens) == (1, 1, 0)
    assert stats.batch_tokens > 0
    assert engine.has_work
    total = 0
    while "r" not in outcomes:
        total += step(engine, outcomes).prompt_tokens
    assert total == len(LONG[0]) + 1
    assert len(outcomes["r"].token_ids) == 1


def test_a_request_that_is_cancelled_in_the_middle_of_its_source_leaves_nothing(runner: FusedPairRunner) -> None:
    engine = engine_of(runner, 8)
    outcomes: dict[str, Outcome] = {}
    expected = bits(run(engine_of(runner), [command("other", LONG[1])]))
    engine.add(command("cancelled", LONG[0]))
    begin(engine, runner, outcomes)
    engine.abort("cancelled")
    assert runner.num_readings == 0
    assert engine.blocks.num_used == 0
    assert bits(run(engine, [command("other", LONG[1])])) == expected


def test_a_source_goes_on_for_another_request_when_its_first_is_cancelled(runner: FusedPairRunner) -> None:
    engine = engine_of(runner, 8)
    outcomes: dict[str, Outcome] = {}
    expected = bits(run(engine_of(runner), [command("other", LONG[0])]))
    engine.add(command("cancelled", LONG[0]))
    engine.add(command("other", LONG[0]))
    while engine.scheduler.num_running < 2:
        step(engine, outcomes)
    watched = Watched(runner)
    engine.abort("cancelled")
    assert runner.num_readings == 1
    assert bits(run(engine, [])) == expected
    starts = [part for part in watched.parts if part.stop <= watched.parts[0].stop]
    assert len(starts) == 1, "no part is read twice"


def test_a_request_preempted_in_the_middle_of_its_source_has_the_same_bits(runner: FusedPairRunner) -> None:
    engine = engine_of(runner, 8)
    commands = [command("old", SHORT, max_new_tokens=60), command("new", LONG[0], do_sample=True, seed=1)]
    undisturbed = run(engine_of(runner), commands)
    outcomes: dict[str, Outcome] = {}
    for each in commands:
        engine.add(each)
    begin(engine, runner, outcomes)
    [before] = runner._readings
    assert engine.scheduler.preempt_newest() == 1
    begin_again = step(engine, outcomes)
    assert begin_again.num_running == 2
    assert before not in runner._readings
    while engine.has_work:
        step(engine, outcomes)
    assert bits(outcomes) == bits(undisturbed)


def test_requests_in_too_small_a_cache_have_the_same_bits_when_their_sources_are_read_in_parts() -> None:
    runner, tight = fused(runner_of(tiny("marian"))), fused(runner_of(tiny("marian"), kv_cache_gib=0.0006))
    commands = [command(f"{i}", LONG[i], max_new_tokens=100, do_sample=True, seed=i) for i in range(8)]
    undisturbed = run(engine_of(runner), commands)
    assert bits(run_preempted(engine_of(tight, 8), commands)) == bits(undisturbed)
    assert tight.num_readings == 0


def test_a_source_that_turns_out_not_finite_fails_its_requests_alone(runner: FusedPairRunner) -> None:
    engine = engine_of(runner, 8)
    outcomes: dict[str, Outcome] = {}
    good = [command("good", LONG[1]), command("beams", LONG[2], num_beams=3)]
    expected = bits(run(engine_of(runner), good))
    engine.add(command("bad", LONG[0]))
    engine.add(command("worse", LONG[0], num_beams=2))
    begin(engine, runner, outcomes)
    [reading] = runner._readings.values()
    with torch.inference_mode():
        reading.states.hidden_SD[5, 3] = torch.nan
    for each in good:
        engine.add(each)
    while engine.has_work:
        step(engine, outcomes)
    assert {outcomes.pop(name).failure for name in ("bad", "worse")} == {"numerical_error"}
    assert bits(outcomes) == expected
    assert runner.num_readings == 0
    assert not runner._failed_sources
    assert run(engine, [command("again", LONG[0])])["again"].failure is None


@pytest.mark.parametrize("failing", [1, 2, 3, 7])
def test_memory_that_runs_out_in_the_middle_of_a_source_costs_no_token(
    runner: FusedPairRunner, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    expected = bits(run(engine_of(runner), every_kind()))
    calls = 0
    run_passes = runner._encoder._passes.run

    def full(*given: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise MemoryError
        run_passes(*given)

    monkeypatch.setattr(runner._encoder._passes, "run", full)
    assert bits(run(engine_of(runner, 8), every_kind())) == expected
    assert calls > failing
    assert runner.num_readings == 0


class Eager(Drafter):
    """Guesses a token for every row."""

    def drafts(self, shares: Sequence[Share], max_tokens: int) -> list[IntArray]:
        return [np.array([9]) for _ in shares[:max_tokens]]


def test_nothing_is_drafted_in_a_step_with_a_part_of_a_source(runner: FusedPairRunner) -> None:
    """Its time would count as that of the draft."""
    engine = engine_of(runner, 8, drafter=Eager(Pacing()))
    schedule, batches = engine.scheduler.schedule, []

    def watched() -> Batch:
        batches.append(schedule())
        return batches[-1]

    engine.scheduler.schedule = watched  # type: ignore[method-assign]
    run(engine, [command("short", SHORT, max_new_tokens=40), command("long", LONG[0])])
    assert any(batch.num_growing and batch.source_shares for batch in batches)
    assert any(batch.num_drafted for batch in batches)
    assert not any(batch.num_drafted and batch.source_shares for batch in batches)


def test_a_request_fails_whose_source_never_comes_to_its_end_for_want_of_memory(
    runner: FusedPairRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(runner._encoder, "_write", full)
        outcomes = run(engine_of(runner), [command("r", LONG[0]), command("s", LONG[1], num_beams=3)])
    assert {outcome.failure for outcome in outcomes.values()} == {"insufficient_memory"}
    assert runner.num_readings == 0


def test_few_sources_are_read_in_parts_at_the_same_time(runner: FusedPairRunner) -> None:
    watched = Watched(runner)
    # Ever shorter ones, which each go before those that came first.
    commands = [command(f"{i}", LONG[i][: 60 - 4 * i]) for i in range(8)]
    engine = engine_of(runner, 8)
    outcomes: dict[str, Outcome] = {}
    for each in commands:
        engine.add(each)
        step(engine, outcomes)
    while engine.has_work:
        step(engine, outcomes)
    assert 1 < watched.most_begun <= MOST_BEGUN
    assert all(outcome.finish_reason for outcome in outcomes.values())


def test_a_short_source_begins_beside_several_long_ones(runner: FusedPairRunner) -> None:
    engine = engine_of(runner, 8)
    outcomes: dict[str, Outcome] = {}
    for i in range(6):
        engine.add(command(f"{i}", LONG[i]))
    for _ in range(6):
        step(engine, outcomes)
    engine.add(msgspec.structs.replace(command("short", LONG[7][:10]), caller="other"))
    while not outcomes:
        step(engine, outcomes)
    assert outcomes.keys() == {"short"}


def test_what_begun_sources_keep_is_not_given_to_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_bytes", lambda: 20 * 2**20)
    runner = fused(runner_of(tiny("marian"), kv_cache_gib=0))
    states = runner._encoder.begin([[5] * MAX_SOURCE_LEN], [[0, 1]]).states
    kept = [states.hidden_SD, *states.projected]
    kept_bytes = MOST_BEGUN * sum(tensor.nbytes for tensor in kept)
    assert kept_bytes == MOST_BEGUN * MAX_SOURCE_LEN * runner.encoder_passes.kept_bytes
    room = 0.3 * 20 * 2**20 - kept_bytes
    assert 0 <= room - runner.kv_cache_bytes < runner.kv_cache_bytes / runner.num_blocks
