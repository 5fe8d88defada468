"""CUDA tensors without a GPU: shapes, types and devices, no values. Reading a value on the host raises."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

DEVICE = torch.device("cuda", 0)


@contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Host arrays become tensors through numpy, which fake tensors let through as they are."""
    with cuda_in_name(), FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
        yield fake


@contextmanager
def cuda_in_name() -> Iterator[None]:
    """Let a build of torch without CUDA dispatch to fake CUDA tensors: give CUDA the CPU's do-nothing device guard."""
    if torch.version.cuda is not None:
        yield
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 2).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    guards[1] = guards[0]
    try:
        yield
    finally:
        guards[1] = None


def move_to_fake(module: torch.nn.Module, fake: FakeTensorMode) -> None:
    """Replace every weight and buffer by a fake one on `DEVICE`."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in list(tensors.items()):
                if tensor is not None:
                    moved = torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)
                    assert moved.fake_mode is fake  # type: ignore[attr-defined]
                    tensors[name] = torch.nn.Parameter(moved, False) if tensors is part._parameters else moved
