"""A worker makes its GPU the current one before anything else touches CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from server.config import ModelConfig
from server.errors import ConfigurationError
from server.models import loader
from server.models.device import choose_device, use_device


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was asked of two GPUs that are not there, in order."""
    found: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: found.append(f"set_device {device}"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: not found.append("is_bf16_supported"))
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield found
    torch.backends.cuda.enable_cudnn_sdp(before)


def config(device: str, path: str | Path = "unused") -> ModelConfig:
    return ModelConfig(name="m", path=str(path), device=device)


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(("asked", "chosen"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1")])
def test_a_gpu_is_chosen_with_its_index(asked: str, chosen: str) -> None:
    assert str(choose_device(config(asked))) == chosen


@pytest.mark.usefixtures("calls")
def test_refuses_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ConfigurationError, match="asks for cuda:2, which is not here"):
        choose_device(config("cuda:2"))


def test_the_gpu_is_current_before_its_abilities_are_asked_and_weights_are_read(
    calls: list[str], tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_module(*_args: Any) -> Any:
        calls.append("read_module")
        raise ConfigurationError("far enough")

    monkeypatch.setattr(loader, "read_module", read_module)
    with pytest.raises(ConfigurationError, match="far enough"):
        loader.load(config("cuda:1", tiny_llama))
    assert calls == ["set_device cuda:1", "is_bf16_supported", "read_module"]


def test_cudnn_computes_no_attention_on_a_gpu(calls: list[str]) -> None:
    use_device(torch.device("cuda", 1))
    assert calls == ["set_device cuda:1"]
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_model_on_the_cpu_leaves_gpus_alone(calls: list[str]) -> None:
    use_device(choose_device(config("cpu")))
    assert calls == []
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
    ("asked", "module_dtype", "products"),
    [("auto", torch.float32, None), ("float32", torch.float32, None), ("bfloat16", torch.float32, torch.bfloat16),
     ("float16", torch.float16, None)],
)  # fmt: skip
def test_an_encoder_on_a_gpu_is_float32_and_only_its_products_become_bfloat16(
    asked: Any, module_dtype: torch.dtype, products: torch.dtype | None
) -> None:
    model, device = ModelConfig(name="m", path="unused", dtype=asked), torch.device("cuda", 0)
    assert loader.choose_dtype(model, "classify", device) == module_dtype
    assert loader.product_dtype(model, device) == products


@pytest.mark.parametrize(
    ("task", "settings", "is_open"),
    [
        ("classify", {}, True),
        ("ner", {}, True),
        ("embed", {}, False),
        ("classify", {"dtype": "float32"}, False),
        ("ner", {"quantize": "int8"}, False),
    ],
)
def test_only_an_open_choice_of_a_model_with_labels_may_become_bfloat16(monkeypatch, task, settings, is_open):
    monkeypatch.setattr(loader, "_cpu_has_bfloat16", lambda: True)
    assert loader.may_narrow(ModelConfig(name="m", path="p", **settings), task, torch.device("cpu")) is is_open
    assert not loader.may_narrow(ModelConfig(name="m", path="p", **settings), task, torch.device("cuda"))
