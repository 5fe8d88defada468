"""One sample of several that nobody wants any more is computed no further; the others do not notice."""

from __future__ import annotations

import pytest

from server.protocol import Generate, Output
from tests.engine.driving import Outcome, generate, make_engine, run, step
from tests.engine.fake_runner import FakeRunner
from tests.engine.test_groups import LONG, outputs_of, samples


@pytest.mark.parametrize("index", [0, 1, 3])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_the_others_go_on_as_if_nothing_were(index: int, guidance_scale: float) -> None:
    command = samples("r", LONG, max_new_tokens=12, guidance_scale=guidance_scale)
    whole = outputs_of(run(make_engine(), [command]), command)
    runner = FakeRunner()
    engine = make_engine(runner, max_batch_tokens=64)
    outcomes: dict[str, Outcome] = {}
    engine.add(command)
    for _ in range(3):
        step(engine, outcomes)
    num_computed = runner.num_computed
    engine.abort("r", index)
    engine.check()
    while engine.has_work:
        step(engine, outcomes)
    outputs = outputs_of(outcomes, command)
    assert outputs[index] == whole[index][:3]
    assert [o for i, o in enumerate(outputs) if i != index] == [o for i, o in enumerate(whole) if i != index]
    assert runner.num_computed - num_computed == 3 * 9 * (1 if guidance_scale == 1.0 else 2)
    assert engine.blocks.num_used == 0
    assert runner.live == {}


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("num_steps", [0, 1, 2, 4])
def test_a_sample_may_go_while_the_beginning_of_all_is_computed_again(index: int, num_steps: int) -> None:
    command = samples("r", LONG, n=3, max_new_tokens=12)
    whole = outputs_of(run(make_engine(), [command]), command)
    begun = [Output(tokens[: 2 + i]) for i, tokens in enumerate(whole)]
    runner = FakeRunner()
    engine = make_engine(runner, max_batch_tokens=16)
    engine.add(Generate("r", LONG, command.params, begun))
    outcomes: dict[str, Outcome] = {}
    for _ in range(num_steps):
        step(engine, outcomes)
    engine.abort("r", index)
    engine.check()
    while engine.has_work:
        step(engine, outcomes)
    for i in {0, 1, 2} - {index}:
        rest = outcomes[f"r#{i}" if i else "r"]
        assert [*begun[i].token_ids, *rest.token_ids] == whole[i]
        assert rest.finish_reason == "length"
    assert engine.blocks.num_used == 0
    assert runner.live == {}


def test_with_its_last_sample_the_request_is_forgotten() -> None:
    engine = make_engine()
    engine.add(samples("r", LONG, n=2, max_new_tokens=12))
    for _ in range(3):
        engine.step()
    engine.abort("r", 1)
    engine.abort("r", 0)
    assert not engine.has_work
    engine.check()


def test_what_is_no_sample_of_its_own_stays() -> None:
    engine = make_engine(max_running=12)
    engine.add(generate("beams", LONG, num_beams=2, num_return_sequences=2))
    engine.add(samples("waiting", LONG))
    engine.step()
    for index in (0, 1, 9):
        engine.abort("beams", index)
        engine.abort("unknown", index)
    engine.abort("waiting", 0)
    outcomes: dict[str, Outcome] = {}
    while engine.has_work:
        step(engine, outcomes)
    assert {"beams", "beams#1", "waiting", "waiting#1", "waiting#2", "waiting#3"} <= set(outcomes)
