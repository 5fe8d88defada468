"""The compiled kernels are there where they can be, and nothing needs them."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator

import pytest
import torch

from server.native import kernels
from tests.native import variants

METHODS = {
    "_avx2": {"rms_norm", "layer_norm", "attend", "linear", "chain"},
    "_avxvnni": {"rms_norm", "layer_norm", "attend", "linear", "chain"},
    "_avx512": {"rms_norm", "layer_norm", "attend", "linear"},
    "_amx": {"rms_norm", "layer_norm", "attend", "linear"},
    "_tiles": {"rms_norm", "layer_norm", "attend", "linear"},
}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    kernels.use("torch", 1)


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("g++"), reason="there is no compiler for them")
@pytest.mark.parametrize("variant", METHODS)
def test_where_there_is_a_compiler_they_were_built(variant: str) -> None:
    if not variants.lacking(variant):
        assert set(dir(kernels.load(variant))) >= METHODS[variant]


def test_without_amx_the_amx_kernels_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    without = torch.cpu.get_capabilities() | {"amx_tile": False, "amx_int8": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: without)
    with pytest.raises(ImportError, match=r"lacks .*amx_tile, .*amx_int8"):
        kernels.use("amx", 1)


def test_kernels_that_were_not_built_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernels.FOR_TESTS, "_missing", ())
    with pytest.raises(ImportError, match="not built"):
        kernels.use("missing", 1)


def test_auto_takes_the_next_best_where_the_best_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "VARIANTS", {"_missing": (), **kernels.VARIANTS})
    monkeypatch.setattr(kernels, "AUTOMATIC", ("_missing", "_avx2"))
    if variants.lacking("_avx2"):
        pytest.skip("this processor has none of them")
    assert kernels.use("auto", 1) == "avx2"


def test_a_set_is_used_by_name() -> None:
    for variant in METHODS:
        if not variants.lacking(variant):
            assert kernels.use(variant[1:], 1) == variant[1:]


def test_none_are_used_until_they_are_chosen() -> None:
    kernels.use("torch", 1)
    assert kernels.module() is None and kernels.name() == "torch" and not kernels.has("linear")


def test_where_there_are_none_auto_does_without_and_native_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert kernels.use("auto", 1) == "torch"
    with pytest.raises(ImportError, match="AVX2"):
        kernels.use("native", 1)
