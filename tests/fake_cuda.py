"""CUDA tensors without a GPU: shapes, types and devices, no values. Reading a value on the host raises."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

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


class BlockingCopies(TorchDispatchMode):
    """Counts copies from the host for which a GPU would make the host wait, such as that of a list used as an index."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name
        if name == "aten::_to_copy":
            self._note(args[0], result, kwargs.get("non_blocking", False))
        elif name == "aten::copy_":
            self._note(args[1], args[0], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        elif name in ("aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_"):
            for index in args[1]:
                if index is not None and index.device != args[0].device:
                    self.shapes.append(tuple(index.shape))
        return result

    def _note(self, source: Tensor, target: Tensor, is_asynchronous: bool) -> None:
        if source.device.type == "cpu" and target.device.type == "cuda" and not is_asynchronous:
            self.shapes.append(tuple(source.shape))
