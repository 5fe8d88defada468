"""The compiled kernels are there where they can be, and nothing needs them."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from importlib import import_module

import pytest
import torch

from server.native import kernels

METHODS = {
    "_avx2": {"rms_norm", "layer_norm", "attend"},
    "_avx512": {"rms_norm", "layer_norm", "attend", "linear"},
}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    kernels.use("torch", 1)


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("g++"), reason="there is no compiler for them")
@pytest.mark.parametrize("variant", list(kernels.VARIANTS))
def test_where_there_is_a_compiler_they_were_built(variant: str) -> None:
    if all(torch.cpu.get_capabilities().get(feature, False) for feature in kernels.VARIANTS[variant]):
        assert set(dir(import_module(f"server.native.{variant}"))) >= METHODS[variant]


def test_none_are_used_until_they_are_chosen() -> None:
    kernels.use("torch", 1)
    assert kernels.module() is None and kernels.name() == "torch" and not kernels.has("linear")


def test_where_there_are_none_auto_does_without_and_native_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert kernels.use("auto", 1) == "torch"
    with pytest.raises(ImportError, match="AVX2"):
        kernels.use("native", 1)
