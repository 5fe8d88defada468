"""A worker with a KV cache in int8 reports its size as planned, and what it loses."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from server.commands import plan
from server.commands.planned import plan_model
from server.config import ModelConfig
from server.engine.executors import cache_type
from server.errors import ConfigurationError
from server.native import kernels
from server.worker.__main__ import build
from tests.tiny_models import tiny_decoder, write_tiny_decoder

torch.set_num_threads(1)


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    if kernels.use("auto", 1) == "torch":
        pytest.skip("no kernels for this processor")
    folder = write_tiny_decoder(tmp_path, "qwen3")
    return ModelConfig(name="m", path=str(folder), dtype="bfloat16", kv_cache_gib=0.002, kv_dtype="int8")


def test_is_as_large_as_planned_and_reports_its_loss(config: ModelConfig, caplog: pytest.LogCaptureFixture) -> None:
    planned = plan_model(config)
    assert planned.cache is not None
    assert " a token in int8: " in "\n".join(plan.lines(planned))
    with caplog.at_level(logging.INFO):
        _, ready = build(config)
    assert (ready.kv_cache_bytes, ready.kv_dtype) == (planned.cache.num_bytes, "int8")
    assert ready.num_blocks * ready.block_size == planned.cache.num_tokens
    assert ready.kv_cache_kl is not None and 0 < ready.kv_cache_kl < 0.01
    assert f"m with a KV cache in int8: the next token's distribution moves by {ready.kv_cache_kl:.4f}" in caplog.text


def test_a_plan_refuses_what_loading_refuses(tiny_llama: Path) -> None:
    config = ModelConfig(name="m", path=str(tiny_llama), kv_dtype="int8")
    refusals = []
    for attempt in (plan_model, build):
        with pytest.raises(ConfigurationError, match="heads of width 12") as error:
            attempt(config)  # type: ignore[operator]
        refusals.append((str(error.value), error.value.exit_code))
    assert refusals[0] == refusals[1]


@pytest.mark.parametrize(
    "settings", [{"kernels": "torch"}, {"executor": "compat"}, {"device": "cuda"}, {"device": "cuda:1"}], ids=str
)
def test_rejects_settings_without_native_attention(settings: dict[str, str]) -> None:
    [(name, value)] = settings.items()
    with pytest.raises(ConfigurationError, match=rf"kv_dtype is int8, .*{name} is {value}: set "):
        ModelConfig(name="m", path="unused", kv_dtype="int8", **settings)  # type: ignore[arg-type]


def test_memory_that_runs_out_while_the_model_is_tried_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as a model that cannot have such a cache."""

    def full(_module: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(cache_type, "probe", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        cache_type.require(tiny_decoder("llama"), ModelConfig(name="m", path="m"), torch.float32, torch.device("cpu"))
