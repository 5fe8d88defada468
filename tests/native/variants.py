"""Runs a test with the kernels of each instruction set that the processor has."""

from __future__ import annotations

import pytest
import torch

from server.native import kernels

WAYS = ("torch", "best")
"""Torch alone and the best kernels, for tests that are too long for all."""


def use(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For one test; ``torch`` for no kernels."""
    monkeypatch.setattr(kernels._State, "module", None)
    if variant == "best":
        if kernels.use("auto", 2) == "torch":
            pytest.skip("there are no kernels for this processor")
    elif variant != "torch":
        if missing := lacking(variant):
            pytest.skip(f"the processor lacks {missing}")
        kernels.use(variant[1:], 2)


def lacking(variant: str) -> str:
    """Features that the set needs and this processor does not have."""
    found = torch.cpu.get_capabilities()
    return ", ".join(name for name in (kernels.VARIANTS | kernels.FOR_TESTS)[variant] if not found.get(name, False))


HERE = [variant for variant in kernels.VARIANTS | kernels.FOR_TESTS if not lacking(variant)]
"""Every set that this processor runs, that of plain loops too."""
