"""Runs a test with the kernels of each instruction set that the processor has."""

from __future__ import annotations

import pytest
import torch

from server.native import kernels

WAYS = ("torch", next(iter(kernels.VARIANTS)))
"""Torch alone and the best kernels, for tests that are too long for all."""


def use(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For one test; ``torch`` for no kernels."""
    if variant == "torch":
        monkeypatch.setattr(kernels._State, "module", None)
        return
    if not all(torch.cpu.get_capabilities().get(feature, False) for feature in kernels.VARIANTS[variant]):
        pytest.skip("the processor lacks this instruction set")
    module = pytest.importorskip(f"server.native.{variant}")
    monkeypatch.setattr(kernels._State, "module", module)
    module.set_num_threads(2)
