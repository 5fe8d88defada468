"""Whether Triton's kernels can run on a device, and how one is started."""

from __future__ import annotations

import importlib
import logging
import os
from functools import cache
from typing import Any

import torch

from server.out_of_memory import raise_if_memory

log = logging.getLogger("sluice.cuda")

LEAST_CAPABILITY = (8, 0)
"""Of the device: the first with products in bfloat16."""

INTERPRET = "TRITON_INTERPRET"
"""The variable that makes Triton run kernels on the host, one program after another: for tests."""

OPTIONS = {"enable_fp_fusion": True}
"""Of the compiler, for all kernels: a product and a sum are one instruction."""


def problem(device: torch.device) -> str | None:
    """Why no kernel can run on ``device``, as the end of a sentence."""
    try:
        importlib.import_module("triton")
    except (ImportError, OSError, RuntimeError) as error:
        return f"triton is not installed ({error})"
    if device.type != "cuda" or not torch.cuda.is_available():
        return None if os.environ.get(INTERPRET) == "1" else "it needs a CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return f"it needs compute capability {_dotted(LEAST_CAPABILITY)} and the device has {_dotted(capability)}"
    return None


@cache
def serve_rows(device: torch.device) -> bool:
    """Whether the kernels of `rows` are here and give torch's results on ``device``. The log says why not."""
    said = problem(device)
    if said is None:
        try:
            said = importlib.import_module("server.cuda.rows_trial").problem(device)
        except (RuntimeError, ValueError, TypeError, AttributeError, OSError, ImportError) as error:
            raise_if_memory(error)
            said = f"they fail ({type(error).__name__}: {error})"
    if said is not None:
        log.info("norms and activations are torch's on %s: %s", device, said)
    return said is None


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Start ``kernel`` on the current device and stream. A grid with an empty side starts nothing."""
    if 0 not in grid:
        kernel[grid](*arguments, **constants, **OPTIONS)


def padded(width: int) -> int:
    """The smallest tile that holds ``width`` places: a power of two, and at least the 16 of a tensor core."""
    return max(16, 1 << (width - 1).bit_length())


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
