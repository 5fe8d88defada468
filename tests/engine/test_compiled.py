"""Compiled layers. Inductor takes minutes on few cores, so its place is taken by Dynamo's own `eager` back end here:
what is traced, where it is cut and how often are the same. The test on a GPU takes Inductor.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from server.config import ModelConfig
from server.engine.executors import build_runner, compiled
from server.errors import ConfigurationError
from server.models.packed_linear import pack_linears
from server.out_of_memory import is_memory_error
from tests.tiny_models import tiny_decoder

torch.set_num_threads(1)


def config(**settings: Any) -> ModelConfig:
    return ModelConfig(name="tiny", path="unused", kv_cache_gib=0.01, compile=True, **settings)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The back end that layers are compiled with, in one place so that a test may choose."""
    chosen = ["eager"]
    right = nn.Module.compile

    def compile_(self: nn.Module, **options: Any) -> None:
        right(self, backend=chosen[0], **options)

    monkeypatch.setattr(nn.Module, "compile", compile_)
    torch.compiler.reset()
    return chosen


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("pack", [None, pack_linears])
def test_compiled_layers_pass_the_check_and_are_compiled_for_any_number_of_tokens(pack: Any) -> None:
    module = tiny_decoder("llama")
    runner = build_runner(module, config(), 64, pack=pack)
    assert runner.name == "generic"
    assert all(layer._compiled_call_impl is not None for layer in module.model.layers)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 24, "the layers share what is compiled for one of them"


def test_layers_that_cannot_be_compiled_are_left_as_they_were(
    backend: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_args: object) -> None:
        raise RuntimeError("no compiler was found")

    backend[0] = broken  # type: ignore[call-overload]
    module = tiny_decoder("llama")
    assert build_runner(module, config(), 64).name == "generic"
    assert "model tiny is not compiled: " in caplog.text
    assert "no compiler was found" in caplog.text
    assert all(layer._compiled_call_impl is None for layer in module.model.layers)


@pytest.mark.usefixtures("backend")
def test_compiled_layers_with_other_logits_are_left_as_they_were(caplog: pytest.LogCaptureFixture) -> None:
    module = tiny_decoder("llama")
    assert not compiled.compile_layers(module, "tiny", lambda: "logits differ by 1")
    assert "model tiny is not compiled: logits differ by 1" in caplog.text
    assert all(layer._compiled_call_impl is None for layer in module.model.layers)


@pytest.mark.parametrize("settings", [{"executor": "fused"}, {"executor": "compat"}, {"deterministic": True}])
def test_compiling_where_nothing_would_be_compiled_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="compile requires the generic executor"):
        config(**settings)


def test_a_model_that_only_compat_can_run_is_said_not_to_be_compiled(caplog: pytest.LogCaptureFixture) -> None:
    assert build_runner(tiny_decoder("bloom"), config(), 64).name == "compat"
    assert "model tiny is not compiled: only the generic executor has layers to compile" in caplog.text


def test_memory_that_runs_out_while_layers_are_compiled_is_reported(backend: list[str]) -> None:
    """Without compiled layers it would only run out later."""

    def full(*_args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    backend[0] = full  # type: ignore[call-overload]
    with pytest.raises(RuntimeError, match="out of memory") as error:
        build_runner(tiny_decoder("llama"), config(), 64)
    assert is_memory_error(error.value)
