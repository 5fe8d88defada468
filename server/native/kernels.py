"""Finds the compiled kernels for this processor. There may be none: no compiler at install, or another processor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import torch  # first: its OpenMP runtime is the one that the kernels share
from torch import Tensor

from server.native import abi, trial_process
from server.native.trial_process import Trial

log = logging.getLogger("sluice.native")

_AVX512 = ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_vnni", "avx512_bf16")

# Best first. Each needs all of these processor features, by torch's names.
VARIANTS = {
    "_amx": (*_AVX512, "amx_tile", "amx_bf16", "amx_int8"),
    "_avx512": _AVX512,
    "_avxvnni": ("avx2", "avx_vnni"),
    "_avx2": ("avx2",),
}

AUTOMATIC = tuple(VARIANTS)
"""What ``auto`` and ``native`` choose from."""

# Only used by name: the tiles of _amx as plain loops.
FOR_TESTS = {"_tiles": _AVX512}

NAMES = tuple(variant[1:] for variant in VARIANTS | FOR_TESTS)
"""Choices that name one set."""


IN_A_CHILD = ("_amx",)
"""Tried in a process of their own: a system may report instructions that it does not let run."""


class Miscomputes(ImportError):
    """Kernels that this processor should run, and that failed their trial."""


class Stale(ImportError):
    """Kernels that were compiled for other structs than those that they would be given."""


class _State:
    """The one module in use, None where torch's own operations do the work."""

    module: ModuleType | None = None


def use(choice: str, num_threads: int, trial: Trial | None = None) -> str:
    """Choose the kernels of this process, once, before any weight is packed. Returns the name of what is used.

    ``choice`` is ``auto``, ``torch`` for none, ``native`` for any, or the name of one set. Raises ImportError, which
    says why, where ``native`` finds none or the named set cannot run. Kernels that fail ``trial`` cannot run.
    """
    found = _chosen(choice, trial)
    if found is None and choice == "native":
        raise ImportError("the CPU kernels were not built for this version of Sluice, or this processor lacks AVX2")
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
    """``amx``, ``avx512``, ``avxvnni``, ``avx2``, ``tiles`` or ``torch``."""
    return "torch" if _State.module is None else _State.module.__name__.rpartition("._")[2]


def address(tensor: Tensor | None) -> int:
    """Where a kernel finds a tensor; 0 says that it is absent. Kernels take dense tensors only."""
    return 0 if tensor is None else tensor.data_ptr()


def _chosen(choice: str, trial: Trial | None) -> ModuleType | None:
    if choice == "torch":
        return None
    return _best(trial) if choice in ("auto", "native") else _tried(f"_{choice}", trial)


def load(variant: str) -> ModuleType:
    """One of `VARIANTS` or `FOR_TESTS`. Raises ImportError, which says why, where it cannot run; `Stale` is one."""
    capabilities = torch.cpu.get_capabilities()
    missing = [name for name in (VARIANTS | FOR_TESTS)[variant] if not capabilities.get(name, False)]
    if missing:
        raise ImportError(f"this processor lacks {', '.join(missing)}")
    try:
        module = import_module(f"server.native.{variant}")
    except ModuleNotFoundError:
        raise ImportError("they were not built when Sluice was installed") from None
    if getattr(module, "abi_digest", None) != abi.digest():
        raise Stale("they were compiled for another version of Sluice; install Sluice again, or run make setup")
    return module


def _best(trial: Trial | None) -> ModuleType | None:
    for variant in AUTOMATIC:
        try:
            return _tried(variant, trial)
        except (Miscomputes, Stale) as error:
            log.warning("the %s kernels are not used: %s", variant[1:], error)
        except ImportError as error:
            log.info("no %s kernels: %s", variant[1:], error)
    return None


def _tried(variant: str, trial: Trial | None) -> ModuleType:
    """Raises `Miscomputes` where they fail the trial."""
    module = load(variant)
    if trial is None:
        return module
    before = _State.module
    # With one thread: a fork has no others, and a short trial need not wake them.
    _State.module = module
    module.set_num_threads(1)
    try:
        problem = trial_process.problem(trial) if variant in IN_A_CHILD else trial()
    finally:
        _State.module = before
    if problem is not None:
        raise Miscomputes(problem)
    return module
