"""With a KV cache in int8, tokens and log-probabilities are bitwise the same however a request is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from server.config import ModelConfig
from server.engine.engine import DecoderEngine
from server.engine.executors import build_runner
from server.engine.model_runner import ModelRunner
from server.native import kernels
from server.protocol import Generate, Output
from tests.engine.drafting import EagerDrafter
from tests.engine.driving import Outcome, generate, run, run_preempted
from tests.tiny_models import tiny_decoder

MAX_MODEL_LEN = 96
REQUESTS: list[dict[str, Any]] = [{}, {"do_sample": True, "seed": 1}, {"repetition_penalty": 1.2}, {"num_beams": 3}]


@pytest.fixture(scope="module")
def runner() -> Iterator[ModelRunner]:
    torch.set_num_threads(1)
    if kernels.use("auto", 1) == "torch":
        pytest.skip("no kernels for this processor")
    config = ModelConfig(name="m", path="unused", kv_cache_gib=0.01, kv_dtype="int8")
    yield build_runner(tiny_decoder("qwen3"), config, MAX_MODEL_LEN)
    kernels.use("torch", 1)


def engine_of(runner: ModelRunner, **limits: Any) -> DecoderEngine:
    defaults = {"max_batch_tokens": 256, "max_running": 12, "prefix_cache": False}
    return DecoderEngine(runner, max_model_len=MAX_MODEL_LEN, **{**defaults, **limits})


def commands() -> list[Generate]:
    """Prompts that begin alike and repeat themselves."""
    generator = torch.Generator().manual_seed(3)
    stem = torch.randint(3, 380, (10,), generator=generator).tolist()
    return [
        generate(
            str(i),
            [*stem * 4, 20 + i, 7],
            max_new_tokens=40,
            ignore_eos=True,
            logprobs="num_beams" not in params,
            **params,
        )
        for i, params in enumerate(REQUESTS)
    ]


def bits_of(outcomes: dict[str, Outcome]) -> dict[str, tuple[list[int], list[float]]]:
    return {name: (outcomes[name].token_ids, outcomes[name].logprobs) for name in sorted(outcomes)}


@pytest.fixture(scope="module")
def alone(runner: ModelRunner) -> dict[str, tuple[list[int], list[float]]]:
    found = {}
    for command in commands():
        found |= bits_of(run(engine_of(runner), [command]))
    return found


def test_together_and_after_prefix_hits(runner: ModelRunner, alone: object) -> None:
    engine = engine_of(runner, prefix_cache=True)
    assert bits_of(run(engine, commands())) == alone
    again = run(engine, commands())
    assert sum(outcome.num_cached_tokens or 0 for outcome in again.values()) > 0
    assert bits_of(again) == alone


def test_in_small_chunks_and_after_preemptions(runner: ModelRunner, alone: object) -> None:
    num_blocks = runner.num_blocks
    runner.num_blocks = 8
    try:
        assert bits_of(run_preempted(engine_of(runner, max_batch_tokens=13), commands())) == alone
    finally:
        runner.num_blocks = num_blocks


def test_with_guesses_that_are_taken_back(runner: ModelRunner, alone: dict[str, Any]) -> None:
    drafter = EagerDrafter()
    for command in commands():
        assert bits_of(run(engine_of(runner, drafter=drafter), [command])) == {
            command.request_id: alone[command.request_id]
        }


def test_resumed_in_a_fresh_engine(runner: ModelRunner, alone: dict[str, Any]) -> None:
    for command in commands()[:3]:
        token_ids, logprobs = alone[command.request_id]
        resumed = Generate(command.request_id, command.prompt_ids, command.params, [Output(token_ids[:9])])
        outcome = run(engine_of(runner), [resumed])[command.request_id]
        assert (outcome.token_ids, outcome.logprobs) == (token_ids[9:], logprobs[9:])
