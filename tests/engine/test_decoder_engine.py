"""The decoder engine over a runner that shows every mix-up of slots, blocks and positions as a wrong token."""

from __future__ import annotations

import numpy as np
import pytest

from server.engine.engine import DecoderEngine, default_max_batch_tokens
from server.protocol import Encode, Failed, Stats, Tokens
from tests.engine.driving import Outcome, generate, make_engine, run, run_alone, run_preempted, step
from tests.engine.fake_runner import POISON, VOCAB_SIZE, FakeRunner

LONG = list(range(1, 31))


def test_batched_requests_give_the_tokens_of_lone_runs():
    commands = [
        generate(str(i), LONG[i : 2 * i + 3], max_new_tokens=5 + i, seed=i, do_sample=i % 2 == 0) for i in range(12)
    ]
    outcomes = run(make_engine(), commands)
    for command in commands:
        assert outcomes[command.request_id].token_ids == run_alone(command).token_ids


@pytest.mark.parametrize("max_batch_tokens", [1, 3, 4, 7, 64])
def test_a_prompt_in_chunks_gives_the_same_tokens_as_in_one_piece(max_batch_tokens):
    command = generate("r", LONG)
    engine = make_engine(max_batch_tokens=max_batch_tokens, max_running=1)
    assert run(engine, [command])["r"].token_ids == run_alone(command).token_ids


def test_a_step_never_computes_more_than_its_budget():
    runner = FakeRunner()
    run(make_engine(runner, max_batch_tokens=10), [generate(str(i), LONG, max_new_tokens=4) for i in range(6)])
    assert max(sum(len(row.token_ids) for row in rows) for rows in runner.batches) == 10


def test_a_long_prompt_does_not_stop_the_running_streams():
    engine = make_engine(max_batch_tokens=8)
    outcomes: dict[str, Outcome] = {}
    engine.add(generate("stream", [1, 2], max_new_tokens=20))
    step(engine, outcomes)
    engine.add(generate("long", LONG))
    for expected in range(2, 6):
        step(engine, outcomes)
        assert len(outcomes["stream"].token_ids) == expected
    assert "long" not in outcomes


def test_a_prefix_hit_gives_the_same_tokens_as_a_miss():
    runner = FakeRunner()
    engine = make_engine(runner)
    first = run(engine, [generate("first", LONG)])["first"]
    num_computed = runner.num_computed
    second = run(engine, [generate("second", LONG)])["second"]
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 28)
    assert runner.num_computed - num_computed == num_computed - 28
    assert first.token_ids == second.token_ids == run_alone(generate("alone", LONG)).token_ids


def test_output_blocks_serve_the_next_turn_of_a_conversation():
    engine = make_engine()
    first = run(engine, [generate("first", LONG, max_new_tokens=12)])["first"]
    second = run(engine, [generate("second", [*LONG, *first.token_ids, 5])])["second"]
    assert second.num_cached_tokens == 40


def test_a_preempted_sequence_gives_the_same_tokens_as_an_undisturbed_one():
    commands = [generate(str(i), LONG[i : i + 6], max_new_tokens=24, do_sample=True, seed=i) for i in range(4)]
    engine = make_engine(FakeRunner(12))
    outcomes = run_preempted(engine, commands)
    for command in commands:
        assert outcomes[command.request_id].token_ids == run_alone(command).token_ids
        assert outcomes[command.request_id].num_cached_tokens is not None


def test_a_preempted_sequence_comes_back_under_another_key_and_before_later_arrivals():
    runner = FakeRunner(8)
    engine = make_engine(runner, prefix_cache=False)
    outcomes: dict[str, Outcome] = {}
    for name in ("old", "new"):
        engine.add(generate(name, [1, 2, 3, 4], max_new_tokens=24))
    while step(engine, outcomes).num_preemptions == 0:
        pass
    engine.add(generate("late", [7], max_new_tokens=1))
    order: list[str] = []
    while engine.has_work:
        stats = engine.step()[-1]
        assert isinstance(stats, Stats)
        order += stats.started
    assert order == ["late"]
    keys = list(dict.fromkeys(row.key for rows in runner.batches for row in rows))
    assert keys == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "sampling", [{}, {"do_sample": True, "seed": 3, "repetition_penalty": 1.3, "presence_penalty": 0.5}]
)
@pytest.mark.parametrize("num_sent", [0, 1, 5, 11])
def test_a_resumed_request_continues_as_if_nothing_had_happened(sampling, num_sent):
    whole = run_alone(generate("r", LONG[:7], max_new_tokens=12, **sampling))
    sent = whole.token_ids[:num_sent]
    rest = run(make_engine(), [generate("r", LONG[:7], sent, max_new_tokens=12, **sampling)])["r"]
    assert sent + rest.token_ids == whole.token_ids
    assert rest.finish_reason == whole.finish_reason


def test_a_resumed_request_that_was_complete_is_answered_with_its_finish_reason():
    commands = [
        generate("length", [1, 2], [3, 4], max_new_tokens=2),
        generate("stop", [1, 2], [3, 9], max_new_tokens=5, stop_token_ids=(9,)),
        generate("end", [1, 2], [3, 9], max_new_tokens=5, end_token_ids=(9,)),
        generate("ignored", [1, 2], [3, 9], max_new_tokens=3, end_token_ids=(9,), ignore_eos=True),
    ]
    outcomes = run(make_engine(), commands)
    assert [(outcomes[name].finish_reason, len(outcomes[name].token_ids)) for name in outcomes] == [
        ("length", 0),
        ("stop", 0),
        ("stop", 0),
        ("length", 1),
    ]


def test_an_end_token_ends_a_sequence_and_is_sent():
    free = run_alone(generate("r", LONG, max_new_tokens=8)).token_ids
    position = next(i for i in range(1, 8) if free[i] not in free[:i])
    for field in ("end_token_ids", "stop_token_ids"):
        ended = run_alone(generate("r", LONG, max_new_tokens=8, **{field: (free[position],)}))
        assert ended.token_ids == free[: position + 1]
        assert ended.finish_reason == "stop"


def test_min_new_tokens_forbids_the_tokens_that_would_end_the_sequence():
    free = run_alone(generate("r", LONG, max_new_tokens=8)).token_ids
    params = {"max_new_tokens": 8, "end_token_ids": (free[0],), "stop_token_ids": (free[1],)}
    held = run_alone(generate("r", LONG, min_new_tokens=4, **params))
    assert not {free[0], free[1]} & set(held.token_ids[:4])
    assert run_alone(generate("r", LONG, **params)).token_ids == [free[0]]


def test_a_sequence_ends_where_the_model_ends():
    outcome = run(make_engine(max_model_len=20), [generate("r", LONG[:15], max_new_tokens=50)])["r"]
    assert (len(outcome.token_ids), outcome.finish_reason) == (5, "length")


@pytest.mark.parametrize("num_steps", [0, 1, 3, 6])
def test_an_aborted_request_returns_every_block_and_disturbs_nobody(num_steps):
    runner = FakeRunner()
    engine = make_engine(runner)
    outcomes: dict[str, Outcome] = {}
    engine.add(generate("stays", LONG, max_new_tokens=12))
    engine.add(generate("goes", LONG, max_new_tokens=12))
    for _ in range(num_steps):
        step(engine, outcomes)
    engine.abort("goes")
    engine.abort("unknown")
    engine.check()
    while engine.has_work:
        step(engine, outcomes)
    assert outcomes["stays"].token_ids == run_alone(generate("r", LONG, max_new_tokens=12)).token_ids
    assert engine.blocks.num_used == 0
    assert runner.live == {}


def test_an_abort_frees_blocks_before_the_next_step():
    engine = make_engine()
    engine.add(generate("r", LONG))
    engine.step()
    assert engine.blocks.num_used > 0
    engine.abort("r")
    assert engine.blocks.num_used == 0
    assert not engine.has_work


def test_a_request_with_logits_that_are_not_finite_fails_alone():
    healthy = [generate(str(i), LONG[i : i + 9], max_new_tokens=6) for i in range(3)]
    engine = make_engine()
    outcomes = run(engine, [*healthy, generate("bad", [1, 2, 3, 4, 5, 6, 7, 8, POISON, 10], max_new_tokens=6)])
    assert outcomes["bad"].failure == "numerical_error"
    assert outcomes["bad"].token_ids == []
    for command in healthy:
        assert outcomes[command.request_id].token_ids == run_alone(command).token_ids


def test_a_request_that_is_not_finite_fails_in_the_chunk_where_it_is_and_nobody_finds_its_blocks():
    engine = make_engine(FakeRunner(), max_batch_tokens=4, max_running=4)
    outcomes: dict[str, Outcome] = {}
    engine.add(generate("bad", [1, 2, 3, POISON, *range(5, 25)]))
    step(engine, outcomes)
    assert outcomes["bad"].failure == "numerical_error"
    assert engine.blocks.num_used == 0
    again = run(engine, [generate("again", [1, 2, 3, POISON, 5])])["again"]
    assert again.failure == "numerical_error"


def test_no_block_of_a_failed_request_is_a_prefix_hit_or_left_uncleared():
    runner = FakeRunner()
    engine = make_engine(runner, max_batch_tokens=4, max_running=4)
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, POISON, 10]
    run(engine, [generate("bad", prompt)])
    assert (runner.slots == -1).all()
    again = run(engine, [generate("again", prompt[:8])])["again"]
    assert again.num_cached_tokens == 0


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (generate("r", []), "internal_error"),
        (generate("r", [1, VOCAB_SIZE]), "internal_error"),
        (generate("r", [1, -1]), "internal_error"),
        (generate("r", [1], [VOCAB_SIZE]), "internal_error"),
        (generate("r", [1] * 128), "internal_error"),
        (generate("r", [1] * 60, [1] * 69), "internal_error"),
        (generate("r", [1], max_new_tokens=0), "internal_error"),
        (generate("r", [1] * 20, max_new_tokens=22), "insufficient_memory"),
        (Encode("r", [1, 2]), "internal_error"),
    ],
)
def test_a_command_that_cannot_be_served_is_answered_and_the_engine_goes_on(command, code):
    engine = make_engine(FakeRunner(10))
    engine.add(command)
    assert engine.has_work
    failed, stats = engine.step()
    assert isinstance(failed, Failed)
    assert (failed.request_id, failed.code) == ("r", code)
    assert isinstance(stats, Stats)
    assert run(engine, [generate("next", [1, 2, 3])])["next"].finish_reason == "length"


def test_the_largest_request_that_fits_alone_is_served():
    outcome = run(make_engine(FakeRunner(10)), [generate("r", [1] * 20, max_new_tokens=21)])["r"]
    assert len(outcome.token_ids) == 21


def test_a_second_request_with_a_running_id_is_refused():
    engine = make_engine()
    engine.add(generate("r", LONG))
    engine.add(generate("r", [1]))
    failed = engine.step()[0]
    assert isinstance(failed, Failed)


def test_a_runner_that_cannot_share_blocks_gets_no_prefix_hits():
    engine = make_engine(FakeRunner(can_reuse_blocks=False))
    run(engine, [generate("first", LONG)])
    assert run(engine, [generate("second", LONG)])["second"].num_cached_tokens == 0


def test_logprobs_come_with_the_tokens_that_asked():
    prompt = LONG[:5]
    outcomes = run(make_engine(), [generate("with", prompt, logprobs=True), generate("without", prompt)])
    prefix = np.array([[token, i] for i, token in enumerate(prompt)])
    expected = FakeRunner.logits_of(prefix).log_softmax(-1)[outcomes["with"].token_ids[0]].item()
    assert outcomes["with"].logprobs[0] == pytest.approx(expected, abs=1e-6)
    assert len(outcomes["with"].logprobs) == len(outcomes["with"].token_ids)
    assert outcomes["without"].logprobs == []


def test_stats_tell_what_a_step_did():
    engine = make_engine(max_batch_tokens=12, max_running=3)
    for name in "abcd":
        engine.add(generate(name, LONG[:8], max_new_tokens=4))
    stats = engine.step()[-1]
    assert isinstance(stats, Stats)
    assert stats.started == ["a", "b"]
    assert (stats.num_running, stats.num_waiting, stats.batch_size) == (2, 2, 2)
    assert (stats.batch_tokens, stats.prompt_tokens, stats.padded_tokens) == (12, 12, 0)
    assert (stats.prefix_query_tokens, stats.prefix_hit_tokens) == (16, 0)
    assert stats.num_blocks_used == 4
    assert 0 < stats.forward_s <= stats.step_s
    stats = engine.step()[-1]
    assert isinstance(stats, Stats)
    assert (stats.batch_tokens, stats.prompt_tokens, stats.started) == (9, 8, ["c"])
    assert stats.prefix_hit_tokens == 4


def test_an_idle_engine_has_no_work_and_steps_to_bare_stats():
    engine: DecoderEngine = make_engine()
    assert not engine.has_work
    assert [type(reply) for reply in engine.step()] == [Stats]


def test_waiting_requests_start_in_the_order_of_arrival():
    engine = make_engine(max_running=2)
    for i in range(6):
        engine.add(generate(str(i), [i + 1], max_new_tokens=3))
    started: list[str] = []
    while engine.has_work:
        *replies, stats = engine.step()
        assert isinstance(stats, Stats)
        assert all(isinstance(reply, Tokens) for reply in replies)
        started += stats.started
    assert started == [str(i) for i in range(6)]


def test_the_default_budget_lets_a_full_batch_decode():
    assert default_max_batch_tokens(64) == 2048
    assert default_max_batch_tokens(4096) == 4096
