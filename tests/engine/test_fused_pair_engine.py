"""The engine over encoder-decoders in fused layers: transformers' tokens, and bits that nothing moves."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from server.config import ModelConfig
from server.engine.engine import DecoderEngine
from server.engine.executors.build import build_runner
from server.engine.model_runner import ModelRunner
from server.errors import ConfigurationError
from server.protocol import Generate, Output
from tests.engine.driving import Outcome, run, run_preempted
from tests.native import variants
from tests.parity import cases
from tests.parity.test_parity import PROMPTS, check
from tests.tiny_encoder_decoders import KINDS, scramble_pair, start_id, tiny_config

MAX_MODEL_LEN, MAX_SOURCE_LEN = 128, 64
SOURCES = [[*PROMPTS[0]] * 9, [*PROMPTS[1]], [*PROMPTS[2]] * 4, [*PROMPTS[3]] * 6]


@pytest.fixture(autouse=True)
def best_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    variants.use("best", monkeypatch)


def tiny(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """With heads of the width 16, which the kernels take."""
    config = tiny_config(family)
    if hasattr(config, "d_kv"):
        config.d_kv = 16
    else:
        config.encoder_attention_heads = config.decoder_attention_heads = 3
    module = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    scramble_pair(module, 0)
    module.generation_config.decoder_start_token_id = start_id(family)
    return module.eval().to(dtype)


@pytest.mark.parametrize("family", ["t5", "t5-1.1", "mt5", "umt5", "bart", "marian"])
def test_models_in_bfloat16_are_fused(family: str) -> None:
    assert runner_of(tiny(family, torch.bfloat16)).name == "fused"


def runner_of(module: PreTrainedModel, **settings: Any) -> ModelRunner:
    config = ModelConfig(
        name="m", path="unused", block_size=32, max_running=64, executor="fused",
        **{"kv_cache_gib": 0.02, **settings},
    )  # fmt: skip
    runner = build_runner(module, config, MAX_MODEL_LEN, max_source_len=MAX_SOURCE_LEN)
    assert runner.is_row_invariant
    return runner


def engine_of(runner: ModelRunner, max_batch_tokens: int = 96, **options: Any) -> DecoderEngine:
    return DecoderEngine(
        runner,
        max_model_len=MAX_MODEL_LEN,
        max_source_len=MAX_SOURCE_LEN,
        max_batch_tokens=max_batch_tokens,
        max_running=64,
        prefix_cache=True,
        **options,
    )


def read(commands: list[Generate], family: str) -> list[Generate]:
    """The same requests to a model that reads the prompts as its sources, and reports the log-probabilities."""
    return [
        msgspec.structs.replace(
            command,
            prompt_ids=[start_id(family)],
            source_ids=command.prompt_ids,
            params=msgspec.structs.replace(command.params, logprobs=True),
        )
        for command in commands
        if command.params.guidance_scale == 1.0
    ]


@pytest.mark.parametrize("family", KINDS)
def test_requests_of_all_kinds_in_one_batch_give_what_transformers_gives(family: str) -> None:
    commands = read(cases.at_random(SOURCES, 40, seed=5), family)
    check(engine_of(runner_of(tiny(family))), tiny(family), commands)


def requests(family: str) -> list[Generate]:
    """Twelve of all kinds, some of which read the same source."""
    return read(cases.at_random(SOURCES, 12, seed=11), family)


def bits(outcomes: dict[str, Outcome]) -> dict[str, tuple[list[int], list[float], float | None]]:
    return {name: (each.token_ids, each.logprobs, each.score) for name, each in outcomes.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", KINDS)
def test_a_request_has_the_same_bits_alone_in_a_batch_and_with_its_source_found(
    family: str, dtype: torch.dtype
) -> None:
    runner = runner_of(tiny(family, dtype))
    alone: dict[str, Outcome] = {}
    for command in requests(family):
        alone |= run(engine_of(runner), [command])
    together = engine_of(runner)
    assert bits(run(together, requests(family))) == bits(alone)
    assert bits(run(together, requests(family))) == bits(alone)


def every_way(family: str, number: int, **params: Any) -> list[Generate]:
    """Greedy requests, samples and beams in turn."""
    ways: list[dict[str, Any]] = [{}, {"do_sample": True}, {"num_beams": 3}]
    return read([cases.command(f"{i}", SOURCES[i % 4], seed=i, **ways[i % 3], **params) for i in range(number)], family)


@pytest.mark.parametrize("family", KINDS)
def test_a_request_that_was_preempted_has_the_same_bits(family: str) -> None:
    # Of 26 blocks.
    runner, tight = runner_of(tiny(family)), runner_of(tiny(family), kv_cache_gib=0.0008 if family == "t5" else 0.0006)
    assert tight.num_blocks == 26
    commands = every_way(family, 12, max_new_tokens=60, min_new_tokens=60)
    undisturbed = run(engine_of(runner), commands)
    assert bits(run_preempted(engine_of(tight), commands)) == bits(undisturbed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", KINDS)
def test_a_resumed_request_goes_on_with_the_same_bits_whether_its_source_is_found_or_not(
    family: str, dtype: torch.dtype
) -> None:
    runner = runner_of(tiny(family, dtype))
    commands = [each for each in every_way(family, 8, min_new_tokens=12) if each.params.num_beams == 1]
    whole = run(engine_of(runner), commands)
    for num_delivered in (1, 7):
        resumed = [
            msgspec.structs.replace(each, outputs=[Output(whole[each.request_id].token_ids[:num_delivered])])
            for each in commands
        ]
        engine = engine_of(runner)
        for _ in ("missed", "found"):
            for name, rest in run(engine, resumed).items():
                assert rest.token_ids == whole[name].token_ids[num_delivered:]
                assert rest.logprobs == whole[name].logprobs[num_delivered:]


def test_a_cache_in_int8_without_kernels_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    variants.use("torch", monkeypatch)
    config = ModelConfig(name="m", path="unused", block_size=32, kv_cache_gib=0.02, kv_dtype="int8")
    with pytest.raises(ConfigurationError, match="cannot have its KV cache in int8: there are no kernels for it"):
        build_runner(tiny("marian"), config, MAX_MODEL_LEN, max_source_len=MAX_SOURCE_LEN)


def test_a_cache_and_weights_in_int8_serve_and_say_what_they_lose() -> None:
    runner = runner_of(tiny("marian"), kv_dtype="int8", quantize="int8")
    assert runner.kv_cache_kl is not None
    assert runner.quantization_kl is not None
    assert 0 < runner.kv_cache_kl < 0.05
    assert 0 < runner.quantization_kl < 0.2
    outcomes = run(engine_of(runner), requests("marian"))
    assert all(outcome.finish_reason for outcome in outcomes.values())
