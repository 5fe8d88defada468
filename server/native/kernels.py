"""Finds the compiled kernels for this processor. There may be none: no compiler at install, or another processor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import torch  # first: its OpenMP runtime is the one that the kernels share
from torch import Tensor

log = logging.getLogger("sluice.native")

# Best first; each needs all of its processor features, by torch's names.
VARIANTS = {
    "_avx512": ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_vnni", "avx512_bf16"),
    "_avx2": ("avx2",),
}


class _State:
    """The one module in use, None where torch's own operations do the work."""

    module: ModuleType | None = None


def use(choice: str, num_threads: int) -> str:
    """Choose the kernels of this process, once, before any weight is packed. Returns the name of what is used.

    ``choice`` is ``auto``, ``torch`` for none, or ``native``, which raises ImportError where there are none.
    """
    found = None if choice == "torch" else _find()
    if found is None and choice == "native":
        raise ImportError("the CPU kernels were not built, or this processor lacks AVX2")
    _State.module = found
    if found is not None:
        found.set_num_threads(num_threads)
    return name()


def set_num_threads(num_threads: int) -> None:
    """Of the kernels in use, if there are any, from the next call on."""
    if _State.module is not None:
        _State.module.set_num_threads(num_threads)


def has(method: str) -> bool:
    """Whether the kernels in use can do this: some do with an instruction set what others leave to torch."""
    return hasattr(_State.module, method)


def get(method: str) -> Callable[..., None]:
    """The kernel of that name, which `has` says is there."""
    kernel: Callable[..., None] = getattr(_State.module, method)
    return kernel


def module() -> ModuleType | None:
    """The compiled kernels, None where there are none or none are wanted."""
    return _State.module


def name() -> str:
    """``avx512``, ``avx2`` or ``torch``."""
    return "torch" if _State.module is None else _State.module.__name__.rpartition("._")[2]


def address(tensor: Tensor | None) -> int:
    """Where a kernel finds a tensor; 0 says that it is absent. Kernels take dense tensors only."""
    return 0 if tensor is None else tensor.data_ptr()


def _find() -> ModuleType | None:
    capabilities = torch.cpu.get_capabilities()
    for variant, features in VARIANTS.items():
        if not all(capabilities.get(feature, False) for feature in features):
            continue
        try:
            return import_module(f"server.native.{variant}")
        except ImportError as error:
            log.info("no CPU kernels for %s: %s", variant[1:], error)
    return None
