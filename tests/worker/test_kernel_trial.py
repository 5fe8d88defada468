"""Kernels that miscompute are refused before a weight is packed for them."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from server.config import ModelConfig
from server.errors import ConfigurationError
from server.models import loader
from server.native import kernels
from server.native.abi import Layer, Row, Step
from server.native.formats import FORMATS, Int4
from server.worker import kernel_trial
from tests.native import variants

torch.set_num_threads(1)


@pytest.mark.parametrize("variant", variants.HERE)
def test_every_set_that_runs_here_passes(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variants.use(variant, monkeypatch)
    assert kernel_trial.problem() is None


def broken(method: str) -> Any:
    """The best kernels with one of them spoilt."""
    kernels.use("auto", 1)
    module = kernels.module()
    if module is None or not hasattr(module, method):
        pytest.skip("this processor has no such kernel")
    return spoilt(method, WRONG[method])


def spoilt(method: str, wrong: Callable[..., Any]) -> Any:
    """The kernels in use, where ``wrong`` computes ``method``; it is given the right kernel first."""
    module = kernels.module()
    right = getattr(module, method)
    methods = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    methods[method] = lambda *given: wrong(right, *given)
    return SimpleNamespace(**methods, __name__="server.native._broken")


WRONG: dict[str, Callable[..., Any]] = {
    # As if for another activation.
    "linear": lambda right, *given: right(*given[:11], 4, *given[12:]),
    "rms_norm": lambda right, *given: right(*given[:6], 1.0, given[7]),
    "attend": lambda _right, *_given: None,
    "encoder_attention": lambda right, *given: right(*given[:-3], 2.0, *given[-2:]),
}


def without_bias(right: Callable[..., Any], layer: int, *given: Any) -> Any:
    plain = Layer.from_buffer_copy(Layer.from_address(layer))
    plain.bias = 0
    return right(ctypes.addressof(plain), *given)


def without_sources(right: Callable[..., Any], layer: int, step: int, call: int) -> Any:
    return right(layer, step, call) if Row.from_address(Step.from_address(step).rows).visible == 0 else None


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        ("attend", without_bias),
        ("attend", without_sources),
        ("encoder_attention", lambda right, *given: right(*given[:16], 0, *given[17:])),
    ],
    ids=["bias", "sources", "bias of an encoder"],
)
def test_attention_that_lacks_what_some_models_need_is_found(
    method: str, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels.use("auto", 1) == "torch":
        pytest.skip("this processor has no such kernel")
    monkeypatch.setattr(kernels._State, "module", spoilt(method, wrong))
    assert "attention is wrong" in str(kernel_trial.problem())


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("linear", "products are wrong"),
        ("rms_norm", "norms"),
        ("attend", "attention is wrong"),
        ("encoder_attention", "attention is wrong"),
    ],
)
def test_a_wrong_kernel_is_found(method: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels._State, "module", broken(method))
    assert words in str(kernel_trial.problem())


class WideAndWrong(Int4):
    """Its width is no divisor of the trial's, and its numbers are others than those that it packs."""

    def multiple(self, dtype: torch.dtype) -> int:
        return 64

    def rounded(self, weight_NK: torch.Tensor) -> torch.Tensor:
        return 1.1 * weight_NK


@pytest.mark.parametrize("variant", variants.HERE)
def test_a_type_of_any_width_is_tried(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variants.use(variant, monkeypatch)
    monkeypatch.setitem(FORMATS, "int4", WideAndWrong())
    assert kernel_trial.problem() == "its int4 products are wrong"


def test_auto_takes_the_next_set_and_logs_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if variants.lacking("_avx2"):
        pytest.skip("this processor has none of them")
    spoilt = broken("rms_norm")
    monkeypatch.setattr(kernels, "AUTOMATIC", ("_tiles", "_avx2"))
    load = kernels.load
    monkeypatch.setattr(kernels, "load", lambda variant: spoilt if variant == "_tiles" else load(variant))
    with caplog.at_level(logging.WARNING):
        assert kernels.use("auto", 1, kernel_trial.problem) == "avx2"
    assert "the tiles kernels are not used: its norms are wrong" in caplog.text


def test_a_named_set_that_miscomputes_ends_the_worker_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = broken("rms_norm")
    monkeypatch.setattr(kernels, "load", lambda variant: spoilt)
    with pytest.raises(ConfigurationError, match="asks for avx512 kernels: its norms are wrong"):
        kernel_trial.choose(ModelConfig(name="m", path="m", kernels="avx512"), 1)


def test_auto_stays_in_float32_where_the_kernels_miscompute(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 would be slower than float32 in what takes their place."""
    spoilt = broken("rms_norm")
    monkeypatch.setattr(loader, "_cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(kernels, "AUTOMATIC", ("_avx2",))
    monkeypatch.setattr(kernels, "load", lambda variant: spoilt)
    model = ModelConfig(name="m", path="m")
    kernel_trial.choose(model, 1)
    assert loader.choose_dtype(model, "generate", torch.device("cpu")) is torch.float32


def test_amx_is_tried_in_a_child_first(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(kernels, "load", lambda variant: SimpleNamespace(set_num_threads=lambda number: None))
    monkeypatch.setattr(kernels.trial_process, "problem", lambda trial: tried.append(trial) or "it ended with SIGILL")
    with pytest.raises(ImportError, match="SIGILL"):
        kernels.use("amx", 1, kernel_trial.problem)
    assert tried == [kernel_trial.problem]
