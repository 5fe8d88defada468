"""Encoder-decoders in the engine: sources are encoded once, and no row feels the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import torch
from transformers import PreTrainedModel

from server.config import ModelConfig
from server.engine.engine import DecoderEngine
from server.engine.executors.build import build_runner
from server.engine.executors.encoder_decoder import EncoderDecoderRunner
from server.errors import ConfigurationError
from server.models.packed_linear import pack_linears
from server.protocol import Failed, Generate, Output, SamplingParams
from tests.engine.driving import Outcome, run, run_preempted, step
from tests.tiny_encoder_decoders import KINDS, start_id, tiny_encoder_decoder

SOURCES = [[5, 9, 200, 31, 9, 200, 1], [301, 1], list(range(40, 75)), [8, 8, 8, 60, 61, 62, 8, 8, 60, 1]]
KINDS_OF_REQUEST: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "seed": 3},
    {"num_beams": 3},
    {"do_sample": True, "seed": 5, "num_return_sequences": 3},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.8, "num_return_sequences": 2},
    {"encoder_no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.4},
]


@pytest.fixture(scope="module", params=KINDS)
def module(request: pytest.FixtureRequest) -> Iterator[PreTrainedModel]:
    torch.set_num_threads(1)
    yield tiny_encoder_decoder(request.param)


def runner_of(module: PreTrainedModel, **settings: Any) -> EncoderDecoderRunner:
    settings = {"executor": "compat", **settings}
    config = ModelConfig(name="m", path="unused", block_size=4, kv_cache_gib=0.02, max_running=16, **settings)
    runner = build_runner(module, config, 96, max_source_len=48, pack=pack_linears)
    assert isinstance(runner, EncoderDecoderRunner)
    return runner


def engine_of(runner: EncoderDecoderRunner, num_blocks: int | None = None, **options: Any) -> DecoderEngine:
    runner.num_blocks = num_blocks or runner.num_blocks
    options = {"max_batch_tokens": 64, "max_running": 16, "prefix_cache": True} | options
    return DecoderEngine(runner, max_model_len=96, max_source_len=48, **options)


def command(request_id: str, source_ids: list[int], outputs: list[Output] | None = None, **params: Any) -> Generate:
    params = {"max_new_tokens": 12, "end_token_ids": (1,), "logprobs": True, **params}
    return Generate(request_id, [start_id("t5")], SamplingParams(**params), outputs or [], source_ids=source_ids)


def every_kind() -> list[Generate]:
    """Each kind of request on each source."""
    return [
        command(f"{i}-{j}", source, max_new_tokens=9, **params)
        for i, source in enumerate(SOURCES)
        for j, params in enumerate(KINDS_OF_REQUEST)
    ]


def heard(outcomes: dict[str, Outcome]) -> dict[str, tuple[Any, ...]]:
    return {name: (o.token_ids, o.logprobs, o.finish_reason, o.score, o.failure) for name, o in outcomes.items()}


class Counting:
    """Counts what the encoder of ``runner`` reads."""

    def __init__(self, runner: EncoderDecoderRunner) -> None:
        self.sources: list[list[int]] = []
        encode = runner._encode_one

        def counted(source: Any) -> Any:
            self.sources.append(list(source.ids))
            return encode(source)

        runner._encode_one = counted  # type: ignore[method-assign]


def test_a_batch_gives_each_request_bit_for_bit_what_it_gives_alone(module: PreTrainedModel) -> None:
    runner = runner_of(module)
    commands = every_kind()
    together = heard(run(engine_of(runner), commands))
    for one in commands:
        alone = heard(run(engine_of(runner, prefix_cache=False), [one]))
        assert alone == {name: value for name, value in together.items() if name.split("#")[0] == one.request_id}


def test_requests_in_too_small_a_cache_give_the_same_tokens(module: PreTrainedModel) -> None:
    runner = runner_of(module)
    commands = every_kind()
    undisturbed = {name: o.token_ids for name, o in run(engine_of(runner), commands).items()}
    engine = engine_of(runner, num_blocks=40)
    found = {name: o.token_ids for name, o in run_preempted(engine, commands).items()}
    assert found == undisturbed
    assert engine.blocks.num_used == 0


def test_deterministic_requests_are_bit_equal_after_a_preemption(module: PreTrainedModel) -> None:
    runner = runner_of(module, deterministic=True)
    commands = every_kind()
    undisturbed = heard(run(engine_of(runner, deterministic=True), commands))
    preempted = heard(run_preempted(engine_of(runner, num_blocks=40, deterministic=True), commands))
    assert preempted == undisturbed


def test_a_resumed_output_goes_on_as_it_would_have(module: PreTrainedModel) -> None:
    runner = runner_of(module)
    for params in ({}, {"do_sample": True, "seed": 3}, {"do_sample": True, "seed": 5, "num_return_sequences": 3}):
        commands = [command(str(i), source, **params) for i, source in enumerate(SOURCES)]
        whole = {name: o.token_ids for name, o in run(engine_of(runner), commands).items()}
        number = params.get("num_return_sequences", 1)
        resumed = []
        for i, source in enumerate(SOURCES):
            told = [whole[f"{i}#{j}" if j else str(i)][: 3 + j] for j in range(number)]
            outputs = [Output(ids, is_finished=ids[-1] == 1) for ids in told]
            if not all(output.is_finished for output in outputs):
                resumed.append(command(str(i), source, outputs, **params))
        for name, o in run(engine_of(runner), resumed).items():
            assert whole[name][-len(o.token_ids) :] == o.token_ids


def test_a_source_is_encoded_once_for_all_samples_and_beams(module: PreTrainedModel) -> None:
    runner = runner_of(module)
    counting = Counting(runner)
    run(engine_of(runner), [command("r", SOURCES[0], num_beams=4)])
    run(engine_of(runner), [command("s", SOURCES[1], do_sample=True, num_return_sequences=4)])
    assert counting.sources == [SOURCES[0], SOURCES[1]]


def test_an_equal_source_is_not_encoded_again(module: PreTrainedModel) -> None:
    runner = runner_of(module)
    counting, engine = Counting(runner), engine_of(runner)
    first = run(engine, [command("a", SOURCES[2]), command("b", SOURCES[2], num_beams=2)])
    second = run(engine, [command("c", SOURCES[2])])
    assert counting.sources == [SOURCES[2]]
    assert second["c"].num_cached_tokens == len(SOURCES[2])
    assert (second["c"].token_ids, second["c"].logprobs) == (first["a"].token_ids, first["a"].logprobs)


def test_tenants_salts_and_a_disabled_cache_share_no_source(module: PreTrainedModel) -> None:
    runner = runner_of(module)
    one = command("a", SOURCES[2])
    others = [msgspec.structs.replace(one, request_id=name, tenant=name) for name in "bc"]
    counting = Counting(runner)
    run(engine_of(runner), [one, *others, msgspec.structs.replace(one, request_id="d", cache_salt="salt")])
    assert len(counting.sources) == 4
    run(engine_of(runner, prefix_cache=False), [one, command("e", SOURCES[2])])
    assert len(counting.sources) == 6


def test_the_source_that_was_used_least_recently_makes_room(module: PreTrainedModel) -> None:
    runner = runner_of(module)
    block_bytes = runner.measure_block()
    counting = Counting(runner)
    engine = engine_of(runner, num_blocks=23)
    for source in (SOURCES[2], SOURCES[0], list(range(80, 115)), SOURCES[0], SOURCES[2]):
        run(engine, [command("r", source, max_new_tokens=20)])
    assert counting.sources == [SOURCES[2], SOURCES[0], list(range(80, 115)), SOURCES[2]]
    assert runner.source_bytes() <= 23 * block_bytes


def test_an_abort_frees_rows_and_source(module: PreTrainedModel) -> None:
    runner = runner_of(module)
    engine = engine_of(runner, prefix_cache=False)
    engine.add(command("a", SOURCES[2], num_beams=3))
    engine.add(command("b", SOURCES[0]))
    step(engine, {})
    engine.abort("a")
    assert engine.blocks.num_used == engine.blocks.num_blocks - engine.blocks.num_available
    run(engine, [])
    assert engine.blocks.num_used == 0
    engine.add(command("c", SOURCES[1]))
    run(engine, [])
    assert runner.num_held == 0
    assert len(runner._encoded) <= 1, "the last is dropped with the next step"


def test_a_source_that_is_not_finite_fails_its_requests_alone_and_is_not_kept(module: PreTrainedModel) -> None:
    runner = runner_of(module)
    good = [command("good", SOURCES[0]), command("fine", SOURCES[3], num_beams=2)]
    wanted = heard(run(engine_of(runner), good))
    encode = runner._encode_one

    def poisoned(source: Any) -> Any:
        states = encode(source)
        if list(source.ids) == SOURCES[2]:
            states.last_hidden_state[:] = torch.nan
        return states

    runner._encode_one = poisoned  # type: ignore[method-assign]
    engine = engine_of(runner)
    bad = [command("bad", SOURCES[2]), command("worse", SOURCES[2], num_beams=2)]
    found = run(engine, [*bad, *good])
    assert found["bad"].failure == found["worse"].failure == "numerical_error"
    assert {name: value for name, value in heard(found).items() if name in wanted} == wanted
    runner._encode_one = encode  # type: ignore[method-assign]
    assert run(engine, [command("again", SOURCES[2])])["again"].failure is None


def test_memory_that_runs_out_while_a_source_is_read_costs_no_other_request(module: PreTrainedModel) -> None:
    runner = runner_of(module)
    commands = [command(str(i), source) for i, source in enumerate(SOURCES)]
    wanted = {name: o.token_ids for name, o in run(engine_of(runner), commands).items()}
    encode, failures = runner._encode_one, iter([True, False, True])

    def failing(source: Any) -> Any:
        if next(failures, False):
            raise MemoryError
        return encode(source)

    runner._encode_one = failing  # type: ignore[method-assign]
    engine = engine_of(runner)
    assert {name: o.token_ids for name, o in run(engine, commands).items()} == wanted


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"source_ids": []}, "no tokens"),
        ({"source_ids": [5] * 49}, "at most 48"),
        ({"source_ids": [400]}, "vocabulary of 400"),
        ({"params": SamplingParams(max_new_tokens=2, guidance_scale=2.0)}, "guidance"),
        ({"template_spans": [(0, 1)]}, "template"),
    ],
)
def test_an_impossible_source_is_refused_by_name(wrong: dict[str, Any], words: str) -> None:
    engine = engine_of(runner_of(tiny_encoder_decoder("bart")))
    engine.add(msgspec.structs.replace(command("r", [5, 6]), **wrong))
    failed = engine.step()[0]
    assert isinstance(failed, Failed) and words in failed.message


def test_the_generic_executor_and_float16_of_t5_are_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="cannot run in the generic executor"):
        runner_of(tiny_encoder_decoder("bart"), executor="generic")
    with pytest.raises(ConfigurationError, match="float16"):
        runner_of(tiny_encoder_decoder("t5").half(), executor="auto")
