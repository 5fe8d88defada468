"""With `deterministic`, what a request gets is bitwise the same alone, in any batch and after any disturbance."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from server.config import ModelConfig
from server.engine.engine import DecoderEngine
from server.engine.executors.build import build_runner
from server.engine.model_runner import ModelRunner
from server.errors import ConfigurationError
from server.models.packed_linear import pack_linears
from server.native import kernels
from server.protocol import Generate, Output, SamplingParams, Stats, Tokens
from tests.tiny_models import tiny_decoder

torch.set_num_threads(1)

MAX_MODEL_LEN = 512
DEFAULT_MODEL = Path("models/smollm2-135m-instruct")
Told = list[tuple[list[int], list[float]]]
"""Token ids and log-probabilities of each of a request's sequences."""


def load(name: str, dtype: torch.dtype) -> PreTrainedModel:
    if name == "default":
        # The first layers: all have the same shapes.
        return AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL, dtype=dtype, num_hidden_layers=2).eval()
    return tiny_decoder(name).to(dtype)


def runner_of(module: PreTrainedModel) -> ModelRunner:
    config = ModelConfig(name="m", path="unused", deterministic=True, kv_cache_gib=0.1, max_running=64)
    return build_runner(module, config, MAX_MODEL_LEN, pack=pack_linears)


def engine_of(runner: ModelRunner, num_blocks: int = 0, **limits: Any) -> DecoderEngine:
    """An engine with an empty cache. One runner serves several, one after the other."""
    assert num_blocks <= runner.num_blocks
    runner.num_blocks = num_blocks or runner.num_blocks
    defaults = {"max_batch_tokens": 256, "max_running": 64, "prefix_cache": True, "deterministic": True}
    return DecoderEngine(runner, max_model_len=MAX_MODEL_LEN, **{**defaults, **limits})


def run(engine: DecoderEngine, commands: list[Generate], *, is_cramped: bool = False) -> dict[str, Told]:
    num_preemptions = 0
    tokens: dict[tuple[str, int], tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for command in commands:
        engine.add(command)
    while engine.has_work:
        for reply in engine.step():
            if isinstance(reply, Tokens):
                token_ids, logprobs = tokens[reply.request_id, reply.index]
                token_ids += reply.token_ids
                logprobs += reply.logprobs or []
            elif isinstance(reply, Stats):
                num_preemptions += reply.num_preemptions
    engine.check()
    assert (num_preemptions > 0) == is_cramped
    return {
        command.request_id: [
            tokens[command.request_id, i] for i in range(command.params.num_return_sequences)
        ]
        for command in commands
    }  # fmt: skip


def commands(prompt_lengths: list[int], vocab_size: int, max_new_tokens: int = 8) -> list[Generate]:
    draw = random.Random(4)
    stem = [draw.randrange(3, vocab_size) for _ in range(max(prompt_lengths))]
    kinds: list[dict[str, Any]] = [
        {},
        {"do_sample": True, "seed": 5},
        {"do_sample": True, "seed": 6, "temperature": 0.7, "top_k": 30, "num_return_sequences": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"repetition_penalty": 1.3},
        {"do_sample": True, "seed": 7, "top_p": 0.9},
    ]
    found = []
    for i, length in enumerate(prompt_lengths):
        prompt = [*stem[: length // 2], *(draw.randrange(3, vocab_size) for _ in range(length - length // 2))]
        params = SamplingParams(max_new_tokens=max_new_tokens + i % 5, logprobs=True, **kinds[i % len(kinds)])
        found.append(Generate(f"{i}", prompt, params))
    return found


@pytest.fixture(params=["torch", "auto"])
def native(request: pytest.FixtureRequest) -> Iterator[str]:
    """Without our kernels, whose rows may be cut anywhere, and with them."""
    used = kernels.use(request.param, 1)
    if request.param == "auto" and used == "torch":
        pytest.skip("there are no kernels for this processor")
    yield used
    kernels.use("torch", 1)


CASES = [
    ("llama", torch.float32),
    ("llama", torch.bfloat16),
    ("gpt2", torch.float32),
    ("gemma2", torch.bfloat16),
    pytest.param("default", torch.float32, marks=pytest.mark.defaults),
    pytest.param("default", torch.bfloat16, marks=pytest.mark.defaults),
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_logprobs_are_bitwise_equal_alone_together_preempted_resumed_and_after_a_prefix_hit(
    native: str, name: str, dtype: torch.dtype
) -> None:
    is_tiny = name != "default"
    # Of the default model one request of each kind, and too few tokens to be preempted.
    lengths = [3, 40, 1, 129, 200, 33, 300, 64, 150, 5, 31, 257][: 12 if is_tiny else 6]
    requests = commands(lengths, 380, 40 if is_tiny else 2)
    runner = runner_of(load(name, dtype))
    first = engine_of(runner, prefix_cache=False)
    alone: dict[str, Told] = {}
    for request in requests:
        alone |= run(first, [request])
    assert run(first, requests) == alone, "another batch"
    engine = engine_of(runner)
    run(engine, requests[::2])
    assert run(engine, requests[::-1]) == alone, "prefix hits"
    if is_tiny:
        cramped = engine_of(runner, num_blocks=16)
        assert run(cramped, requests, is_cramped=True) == alone, "preempted"


def test_a_resumed_request_goes_on_with_bitwise_the_same_logprobs(native: str) -> None:
    requests = [
        command
        for command in commands([3, 40, 129, 200, 33, 300], 380)
        if command.params.num_beams == 1 and command.params.num_return_sequences == 1
    ]
    runner = runner_of(load("llama", torch.bfloat16))
    whole = run(engine_of(runner), requests)
    resumed = [
        Generate(r.request_id, r.prompt_ids, r.params, [Output(whole[r.request_id][0][0][:5])]) for r in requests
    ]
    rest = run(engine_of(runner), resumed)
    for request in requests:
        token_ids, logprobs = whole[request.request_id][0]
        assert rest[request.request_id] == [(token_ids[5:], logprobs[5:])]


def test_a_model_that_only_runs_in_compat_is_refused_in_words() -> None:
    config = ModelConfig(name="m", path="unused", deterministic=True, kv_cache_gib=0.01)
    with pytest.raises(ConfigurationError, match="cannot be served deterministically"):
        build_runner(tiny_decoder("bloom"), config, 128, pack=pack_linears)
