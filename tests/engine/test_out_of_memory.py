"""R06: memory that runs out within a step costs no request but one that does not fit alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from server.config import ModelConfig
from server.engine import beam_ranking
from server.engine.batch_inputs import Row
from server.engine.engine import DecoderEngine
from server.engine.executors import build_runner, compat
from server.engine.executors.compat import CompatRunner
from server.out_of_memory import is_memory_error
from server.protocol import Generate
from tests.engine.driving import Outcome, generate, make_engine, run
from tests.engine.fake_runner import POISON, FakeRunner
from tests.tiny_models import tiny_decoder

ERRORS: list[Exception] = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
]
HUGE = POISON
"""A token that no step has memory for, and that is never chosen."""

Fails = Callable[[int, Sequence[Row]], bool]


class FullRunner(FakeRunner):
    """Its memory runs out in steps that ``fails`` picks by number and rows, when half of the rows are computed."""

    def __init__(self, fails: Fails, error: Exception | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._fails = fails
        self._error = error or MemoryError()
        self.num_steps = 0
        self.num_failures = 0

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        self.num_steps += 1
        if not self._fails(self.num_steps, rows):
            return super().forward(rows)
        self.num_failures += 1
        super().forward(rows[: (len(rows) + 1) // 2])
        for row in rows[: (len(rows) + 1) // 2]:
            first = row.block_table[row.num_computed // self.block_size] * self.block_size
            self.slots[first + row.num_computed % self.block_size] = 99
            if self.can_reuse_blocks:
                self.live[row.key] = row.num_computed
        raise self._error


COMMANDS = [
    generate("greedy", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], max_new_tokens=9),
    generate("same", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12], max_new_tokens=9),
    generate("sampled", [3, 4], max_new_tokens=12, do_sample=True, seed=4, temperature=1.5),
    generate("beams", [5, 6, 7, 8, 9], max_new_tokens=7, num_beams=4),
    generate("samples", list(range(20)), max_new_tokens=7, do_sample=True, seed=1, num_return_sequences=3),
    generate("guided", [8, 8, 9], max_new_tokens=7, guidance_scale=2.0),
]


@pytest.mark.parametrize("can_reuse_blocks", [True, False])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("step", [1, 2, 5, 9])
def test_a_failed_step_is_made_again_and_loses_nothing(step: int, error: Exception, can_reuse_blocks: bool) -> None:
    runner = FullRunner(lambda number, _rows: number == step, error, can_reuse_blocks=can_reuse_blocks)
    outcomes = run(make_engine(runner), COMMANDS)
    assert runner.num_failures == 1
    assert_undisturbed(outcomes)
    assert runner.live == {}


@pytest.mark.parametrize("can_reuse_blocks", [True, False])
@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_steps_become_as_small_as_memory_allows(most: int, can_reuse_blocks: bool) -> None:
    def fails(_number: int, rows: Sequence[Row]) -> bool:
        return sum(len(row.token_ids) for row in rows) > most

    commands = [command for command in COMMANDS if command.params.num_beams == 1 and command.request_id != "guided"]
    runner = FullRunner(fails, can_reuse_blocks=can_reuse_blocks)
    outcomes = run(make_engine(runner), commands)
    assert runner.num_failures > 0
    assert_undisturbed(outcomes, commands)


@pytest.mark.parametrize("can_reuse_blocks", [True, False])
def test_only_a_request_that_does_not_fit_alone_ends(can_reuse_blocks: bool) -> None:
    def fails(_number: int, rows: Sequence[Row]) -> bool:
        return any(HUGE in list(row.token_ids) for row in rows)

    huge = generate("huge", [HUGE, 1, 2, 3, 4, 5, 6], max_new_tokens=5)
    runner = FullRunner(fails, can_reuse_blocks=can_reuse_blocks)
    engine = make_engine(runner)
    outcomes = run(engine, [*COMMANDS[:2], huge, *COMMANDS[2:]])
    assert outcomes["huge"].failure == "insufficient_memory"
    assert_undisturbed(outcomes)
    # The engine goes on, in full steps again, and no block holds what a failed step wrote.
    assert_undisturbed(run(engine, COMMANDS))
    assert engine.scheduler.max_batch_tokens == 16, "the budget is the usual one again"


@pytest.mark.parametrize("can_reuse_blocks", [True, False])
def test_a_beam_search_that_does_not_fit_alone_ends(can_reuse_blocks: bool) -> None:
    runner = FullRunner(lambda _number, rows: len(rows) > 3, can_reuse_blocks=can_reuse_blocks)
    outcomes = run(make_engine(runner), COMMANDS)
    assert outcomes["beams"].failure == "insufficient_memory"
    assert_undisturbed(outcomes, [command for command in COMMANDS if command.request_id != "beams"])


def test_memory_that_runs_out_while_tokens_are_chosen_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(FakeRunner())
    right, calls = engine._chooser._sample, []

    def sample(*args: Any) -> None:
        calls.append(args)
        if len(calls) in (1, 4, 9):
            raise MemoryError
        right(*args)

    monkeypatch.setattr(engine._chooser, "_sample", sample)
    outcomes = run(engine, COMMANDS)
    assert len(calls) > 9
    assert_undisturbed(outcomes)


def test_other_errors_still_end_the_worker() -> None:
    error = RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")
    assert not is_memory_error(error)
    engine: DecoderEngine = make_engine(FullRunner(lambda *_: True, error))
    with pytest.raises(RuntimeError, match="The size of tensor"):
        run(engine, COMMANDS[:1])


def assert_undisturbed(outcomes: dict[str, Outcome], commands: Sequence[Generate] = COMMANDS) -> None:
    for command in commands:
        alone = run(make_engine(FakeRunner(64), max_batch_tokens=256, prefix_cache=False), [command])
        for name, expected in alone.items():
            assert outcomes[name].failure is None
            assert outcomes[name].token_ids == expected.token_ids
            assert outcomes[name].finish_reason == expected.finish_reason


BEAMS = [
    generate("one", [5, 6, 7, 8, 9], max_new_tokens=7, num_beams=4),
    generate("two", [5, 6, 3], max_new_tokens=7, num_beams=3, logprobs=True),
]


def fail_in_call(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Memory runs out the ``number``-th time that a lane's log-probabilities are told. Returns the calls."""
    right, calls = beam_ranking._told, [0]

    def told(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            raise MemoryError
        return right(*args)

    monkeypatch.setattr(beam_ranking, "_told", told)
    return calls


@pytest.mark.parametrize("number", [1, 2, 5, 6])
def test_memory_that_runs_out_between_two_beam_searches_changes_neither(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fail_in_call(monkeypatch, number)
    outcomes = run(make_engine(FakeRunner()), BEAMS)
    assert calls[0] > number
    assert_undisturbed(outcomes, BEAMS)


def test_a_search_of_which_some_lanes_have_gone_on_is_not_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    diverse = generate("a", [5, 6, 7], num_beams=4, num_beam_groups=2, diversity_penalty=1.0)
    fail_in_call(monkeypatch, 4)
    with pytest.raises(MemoryError):
        run(make_engine(FakeRunner()), [diverse])


def test_a_fork_copies_its_cache_in_the_forward_pass_and_not_where_a_failure_leaks_blocks() -> None:
    config = ModelConfig(name="m", path="unused", kv_cache_gib=0.01, executor="compat")
    runner = build_runner(tiny_decoder("llama"), config, 128)
    assert isinstance(runner, CompatRunner)
    commands = [
        generate("three", [5, 6, 7], do_sample=True, seed=3, num_return_sequences=3),
        generate("two", [5, 6, 7, 8], do_sample=True, seed=4, num_return_sequences=2),
    ]
    engine = DecoderEngine(runner, max_model_len=128, max_batch_tokens=16, max_running=8, prefix_cache=True)
    expected = {name: outcome.token_ids for name, outcome in run(engine, commands).items()}
    for number in (1, 2):
        with pytest.MonkeyPatch.context() as patch:
            fail_to_copy(patch, number)
            assert {name: outcome.token_ids for name, outcome in run(engine, commands).items()} == expected
        assert runner.num_held == 0


def fail_to_copy(patch: pytest.MonkeyPatch, number: int) -> None:
    right, calls = copy.deepcopy, [0]

    def deepcopy(value: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            raise MemoryError
        return right(value)

    patch.setattr(compat, "copy", SimpleNamespace(deepcopy=deepcopy))
