"""Memory that runs out while a model loads is told as that, wherever it happens, with the settings that help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification, LlamaForCausalLM

from server.config import ModelConfig
from server.engine.executors import compat, generic
from server.errors import ConfigurationError
from server.models import module as module_reading
from server.modules import products
from server.worker.__main__ import build

TEXT = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.68 GiB"


def full(*_args: Any, **_options: Any) -> Any:
    raise torch.OutOfMemoryError(TEXT)


PLACES: list[Any] = [
    (module_reading, "_weights", "auto"),
    (nn.Module, "to", "auto"),
    (LlamaForCausalLM, "forward", "auto"),
    (products, "pack_layer", "fused"),
    (products, "pack_layer", "auto"),
    (generic.GenericRunner, "forward", "generic"),
    (generic.GenericRunner, "forward", "auto"),
    (compat.CompatRunner, "forward", "compat"),
]


@pytest.mark.parametrize(("owner", "name", "executor"), PLACES)
def test_a_decoder_that_does_not_fit_is_refused_as_that(
    owner: Any, name: str, executor: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if owner is generic.GenericRunner and executor == "auto":
        monkeypatch.setattr(products, "pack_layer", _unsupported)
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(ConfigurationError) as refused:
        build(ModelConfig(name="m", path=str(tiny_llama), kv_cache_gib=0.01, device="cpu", executor=executor))
    message = str(refused.value)
    assert message.startswith(f"Model m does not fit the memory of cpu ({TEXT[:30]}")
    assert "Lower kv_cache_gib or max_batch_tokens" in message


def _unsupported(*_args: Any, **_options: Any) -> Any:
    raise generic.Unsupported("it is not tried here")


def test_an_encoder_that_does_not_fit_is_refused_as_that(
    tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BertForSequenceClassification, "forward", full)
    with pytest.raises(ConfigurationError, match="Model m does not fit the memory of cpu"):
        build(ModelConfig(name="m", path=str(tiny_classifier), device="cpu"))


def test_other_failures_are_not_taken_for_a_lack_of_memory(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: Any, **_options: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(LlamaForCausalLM, "forward", broken)
    with pytest.raises(ConfigurationError, match="its forward pass fails"):
        build(ModelConfig(name="m", path=str(tiny_llama), device="cpu"))
