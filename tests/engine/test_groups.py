"""Requests of several rows: samples of one prefill."""

from __future__ import annotations

from typing import Any

import pytest

from server.protocol import Failed, Generate, Output, Tokens
from tests.engine.driving import Outcome, generate, make_engine, run, run_alone, run_preempted, step
from tests.engine.fake_runner import POISON, FakeRunner

LONG = list(range(1, 31))
SAMPLED: dict[str, Any] = {"do_sample": True, "seed": 7, "repetition_penalty": 1.3, "frequency_penalty": 0.4}


def samples(request_id: str, prompt_ids: list[int], n: int = 4, **params: Any) -> Generate:
    return generate(request_id, prompt_ids, num_return_sequences=n, **{**SAMPLED, **params})


def alone(command: Generate) -> list[list[int]]:
    """Each sample from a run in which it is the only one."""
    return [sample_alone(command, index) for index in range(command.params.num_return_sequences)]


def sample_alone(command: Generate, index: int) -> list[int]:
    """The others are finished before they begin."""
    n = command.params.num_return_sequences
    outputs = [Output([], is_finished=i != index) for i in range(n)]
    engine = make_engine(FakeRunner(64), max_batch_tokens=256, prefix_cache=False)
    outcomes = run(engine, [Generate(command.request_id, command.prompt_ids, command.params, outputs)])
    assert len(outcomes) == 1
    return next(iter(outcomes.values())).token_ids


def outputs_of(outcomes: dict[str, Outcome], command: Generate) -> list[list[int]]:
    names = [f"{command.request_id}#{i}" if i else command.request_id for i in range(4)]
    return [outcomes[name].token_ids for name in names[: command.params.num_return_sequences]]


def test_samples_of_one_prefill_are_those_of_lone_runs_and_differ():
    command = samples("r", LONG, max_new_tokens=12)
    runner = FakeRunner()
    outcomes = run(make_engine(runner, max_batch_tokens=64), [command])
    outputs = outputs_of(outcomes, command)
    assert outputs == alone(command)
    assert len({tuple(output) for output in outputs}) == 4
    assert runner.num_computed == len(LONG) + 4 * 11
    assert runner.live == {}


def test_the_first_sample_is_the_one_that_comes_without_the_others():
    command = samples("r", LONG, max_new_tokens=12)
    single = generate("r", LONG, max_new_tokens=12, **SAMPLED)
    assert alone(command)[0] == run_alone(single).token_ids


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("can_reuse_blocks", [True, False])
def test_preempted_groups_give_the_same_tokens(prefix_cache, can_reuse_blocks):
    commands = [samples(str(i), LONG[i : i + 5 + i], n=3, max_new_tokens=14, seed=i) for i in range(3)]
    runner = FakeRunner(20, can_reuse_blocks=can_reuse_blocks)
    engine = make_engine(runner, prefix_cache=prefix_cache, max_batch_tokens=12)
    outcomes = run_preempted(engine, commands)
    for command in commands:
        assert outputs_of(outcomes, command) == alone(command)
    assert runner.live == {}


@pytest.mark.parametrize("num_sent", [(0, 0, 0), (5, 5, 5), (1, 7, 3), (0, 4, 9)])
def test_a_resumed_group_goes_on_with_each_of_its_outputs(num_sent):
    command = samples("r", LONG[:7], n=3, max_new_tokens=10)
    whole = alone(command)
    sent = [Output(tokens[:count]) for tokens, count in zip(whole, num_sent, strict=True)]
    rest = outputs_of(run(make_engine(), [Generate("r", command.prompt_ids, command.params, sent)]), command)
    assert [output.token_ids + more for output, more in zip(sent, rest, strict=True)] == whole


def test_outputs_that_are_finished_are_not_run_again():
    command = samples("r", LONG[:7], n=3, max_new_tokens=10)
    whole = alone(command)
    sent = [Output(whole[0], is_finished=True), Output(whole[1][:4]), Output(whole[2])]
    outcomes = run(make_engine(), [Generate("r", command.prompt_ids, command.params, sent)])
    assert sorted(outcomes) == ["r#1", "r#2"]
    assert whole[1][:4] + outcomes["r#1"].token_ids == whole[1]
    assert (outcomes["r#2"].token_ids, outcomes["r#2"].finish_reason) == ([], "length")


def test_resumed_outputs_compute_what_they_share_once():
    runner = FakeRunner()
    whole = list(range(40, 46))
    sent = [Output([*whole, index]) for index in range(3)]
    command = samples("r", LONG, n=3, max_new_tokens=10)
    run(make_engine(runner, prefix_cache=False), [Generate("r", LONG, command.params, sent)])
    assert runner.num_computed == len(LONG) + 6 + 3 * 3


def test_four_rows_over_a_long_prompt_hold_little_more_than_one():
    engine = make_engine(FakeRunner(64, block_size=32), max_model_len=1100, max_batch_tokens=1100)
    engine.add(samples("r", [1 + i % 50 for i in range(1000)], max_new_tokens=30))
    outcomes: dict[str, Outcome] = {}
    most = max(step(engine, outcomes).num_blocks_used for _ in range(29))
    one = 33
    assert most < 1.2 * one


def test_a_group_whose_prompt_is_not_finite_fails_once():
    engine = make_engine()
    engine.add(samples("r", [1, 2, POISON, 4]))
    failed, _ = engine.step()
    assert isinstance(failed, Failed)
    assert not engine.has_work
    engine.check()


def test_a_group_that_needs_more_rows_than_a_step_has_is_refused():
    engine = make_engine(max_running=3)
    engine.add(samples("r", [1, 2]))
    failed, _ = engine.step()
    assert isinstance(failed, Failed)
    assert "4 rows" in failed.message


def test_no_more_rows_run_than_may():
    runner = FakeRunner()
    commands = [samples(str(i), [i + 1, 2], n=3, max_new_tokens=5) for i in range(4)]
    run(make_engine(runner, max_running=7, max_batch_tokens=64), commands)
    assert max(len(rows) for rows in runner.batches) == 6


def test_requests_with_different_salts_share_no_block():
    engine = make_engine()
    for name, salt, num_cached in (("a", "x", 0), ("b", "x", 28), ("c", "y", 0), ("d", "", 0), ("e", "", 28)):
        command = generate(name, LONG)
        salted = Generate(name, command.prompt_ids, command.params, cache_salt=salt)
        assert run(engine, [salted])[name].num_cached_tokens == num_cached


def test_only_the_first_reply_of_a_request_tells_its_cached_tokens():
    engine = make_engine()
    engine.add(samples("r", LONG, n=3))
    told = []
    while engine.has_work:
        told += [reply.num_cached_tokens for reply in engine.step()[:-1] if isinstance(reply, Tokens)]
    assert [count for count in told if count is not None] == [0]


def test_outputs_that_end_leave_the_others_running():
    command = samples("r", LONG[:6], n=4, max_new_tokens=20, stop_token_ids=tuple(range(0, 60, 7)))
    engine = make_engine(FakeRunner(), max_batch_tokens=64)
    outcomes = run(engine, [command])
    outputs = outputs_of(outcomes, command)
    assert outputs == alone(command)
    assert len({len(output) for output in outputs}) > 1
    reasons = {outcome.finish_reason for outcome in outcomes.values()}
    assert reasons <= {"stop", "length"}


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5])
def test_an_aborted_group_returns_every_block(num_steps):
    runner = FakeRunner()
    engine = make_engine(runner)
    outcomes: dict[str, Outcome] = {}
    engine.add(samples("r", LONG))
    for _ in range(num_steps):
        step(engine, outcomes)
    engine.abort("r")
    engine.check()
    assert (engine.blocks.num_used, runner.live, engine.has_work) == (0, {}, False)


@pytest.mark.parametrize(
    ("outputs", "problem"),
    [
        ([Output([1])], "1 outputs"),
        ([Output([1], is_finished=True)] * 2, "already finished"),
    ],
)
def test_outputs_that_do_not_belong_to_the_request_are_refused(outputs, problem):
    engine = make_engine()
    command = samples("r", LONG, n=2)
    engine.add(Generate("r", LONG, command.params, outputs))
    failed, _ = engine.step()
    assert isinstance(failed, Failed)
    assert problem in failed.message


def test_rules_on_text_are_refused_where_the_tokens_bytes_are_not_known():
    for params in ({"banned_phrases": ("a",)}, {"phrase_penalties": (("a", 1.0),)}, {"grammar": "{}"}):
        engine = make_engine()
        engine.add(generate("r", LONG, **params))
        failed, _ = engine.step()
        assert isinstance(failed, Failed)
        assert "bytes" in failed.message
