"""On a GPU: every back end against torch's own attention, graphs against plain steps, Inductor against plain layers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from server.config import ModelConfig
from server.cuda import kernels
from server.engine.attention import cuda
from server.engine.attention.cuda_paged import PagedAttention
from server.engine.attention.cuda_triton import TritonAttention
from server.engine.batch_inputs import Row
from server.engine.executors import build_runner
from server.engine.executors.cuda_graphs import GraphRunner
from server.modules.attention import LayerSpec

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = torch.device("cuda", 0)
DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def spec(**changes: Any) -> LayerSpec:
    fields = {"num_heads": 8, "num_kv_heads": 2, "key_dim": 64, "value_dim": 64, "scaling": 0.125}
    return LayerSpec(**{**fields, **changes})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [32, 256])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_kv_heads": 8},
        {"window": 33},
        {"softcap": 20.0},
        {"key_dim": 128},
        {"key_dim": 80},
        {"has_sinks": True},
        {"num_heads": 12, "num_kv_heads": 1},
    ],
)
@pytest.mark.parametrize("backend", cuda.BACKENDS, ids=lambda backend: backend.name)
def test_every_kernel_that_is_there_gives_torchs_results(
    backend: type[PagedAttention], changes: dict[str, Any], block_size: int, dtype: torch.dtype
) -> None:
    specs = [spec(**changes, **({"value_dim": changes["key_dim"]} if "key_dim" in changes else {}))]
    problem = backend.problem(specs, block_size, dtype, DEVICE)
    if problem:
        pytest.skip(problem)
    for deterministic in (False, True):
        assert cuda.trial_problem(backend, specs, block_size, dtype, DEVICE, deterministic=deterministic) is None


def llama(dtype: torch.dtype) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    with torch.inference_mode(False):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval().to(DEVICE)


def settings(**changes: Any) -> ModelConfig:
    return ModelConfig(name="gpu", path="unused", kv_cache_gib=0.1, block_size=256, **changes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("executor", ["generic", "fused"])
def test_replayed_steps_give_the_logits_of_plain_ones(
    executor: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="sluice.engine")
    plain = build_runner(llama(dtype), settings(executor=executor, cuda_graphs=False), 2048)
    replayed = build_runner(llama(dtype), settings(executor=executor), 2048)
    if not isinstance(replayed, GraphRunner):
        pytest.skip(f"attention {replayed.attention} has no graphs here: {caplog.text}")
    tables = [[0, 1], [2, 3], [4, 5]]
    prompts = [range(3, 250), range(9, 60), range(5, 12)]
    rows = [Row(key=i, token_ids=p, num_computed=0, block_table=tables[i]) for i, p in enumerate(prompts)]
    for runner in (plain, replayed):
        runner.forward(rows)
    for step in range(12):
        singles = [
            Row(key=i, token_ids=[20 + step], num_computed=len(prompt) + step, block_table=tables[i])
            for i, prompt in enumerate(prompts)
        ]
        ours, theirs = replayed.forward(singles), plain.forward(singles)
        spread = (theirs.amax(-1) - theirs.amin(-1)).max()
        assert (ours - theirs).abs().max() <= 0.05 * spread
    assert replayed.num_graphs == 1
    assert "CUDA graphs are off" not in caplog.text


def test_our_own_kernels_serve_what_they_can_and_their_steps_are_replayed() -> None:
    if problem := TritonAttention.problem([spec()], 256, torch.bfloat16, DEVICE):
        pytest.skip(problem)
    runner = build_runner(llama(torch.bfloat16), settings(), 2048)
    assert isinstance(runner, GraphRunner)
    assert (runner.name, runner.attention) == ("fused", "triton")
    assert kernels.serve_rows(DEVICE)


def test_layers_compiled_by_inductor_pass_the_check(caplog: pytest.LogCaptureFixture) -> None:
    module = llama(torch.bfloat16)
    build_runner(module, settings(compile=True), 2048)
    assert all(layer._compiled_call_impl is not None for layer in module.model.layers), caplog.text
