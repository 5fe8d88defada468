"""``dtype: auto`` is what the processor computes fast."""

from __future__ import annotations

import pytest
import torch

from server.config import ModelConfig
from server.models import loader
from server.native import kernels
from tests.native import variants

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def avx2_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    if variants.lacking("_avx2"):
        pytest.skip("this processor has no kernels")
    monkeypatch.setattr(loader, "_cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(kernels, "AUTOMATIC", ("_avx2",))


def test_decoders_on_avx2_kernels_are_bfloat16() -> None:
    kernels.use("auto", 1)
    assert loader.choose_dtype(ModelConfig(name="chat", path="chat"), "generate", CPU) is torch.bfloat16


def test_decoders_on_torch_alone_are_float32_without_bfloat16_instructions() -> None:
    kernels.use("torch", 1)
    assert loader.choose_dtype(ModelConfig(name="chat", path="chat", kernels="torch"), "generate", CPU) is torch.float32


def test_encoders_on_avx2_kernels_are_float32() -> None:
    kernels.use("auto", 1)
    assert loader.choose_dtype(ModelConfig(name="labels", path="labels"), "classify", CPU) is torch.float32
