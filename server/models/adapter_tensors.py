"""The weights file of an adapter that is to share the worker of its base: every tensor must be of use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from server.models.adapter import WEIGHTS
from server.models.lora import PREFIX
from server.modules.adapted import NotShared

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class AdapterTensors:
    """Those of an adapter's folder, each of which must be taken."""

    def __init__(self, folder: Path) -> None:
        """Raises `NotShared` where they cannot be read, or for one that is there twice or is of a wrong type."""
        try:
            tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise NotShared(f"its weights cannot be read ({error})") from error
        self._left = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            if self._left[name.removeprefix(PREFIX)] is not tensor:
                raise NotShared(f"it holds {name} with and without the prefix {PREFIX}")
            if tensor.dtype not in FLOATS:
                raise NotShared(f"{name} is of type {str(tensor.dtype).removeprefix('torch.')}")

    def take(self, name: str, shape: Sequence[int] | None = None) -> Tensor:
        """In float32. Raises `NotShared` if it is missing, not finite, or of another shape."""
        tensor = self.find(name)
        if tensor is None:
            raise NotShared(f"it lacks {name}")
        if shape is not None and list(tensor.shape) != list(shape):
            raise NotShared(f"{name} has the shape {list(tensor.shape)} where this base takes {list(shape)}")
        return tensor

    def find(self, *names: str) -> Tensor | None:
        """In float32, the first of these that the folder has."""
        name = next((name for name in names if name in self._left), None)
        if name is None:
            return None
        tensor = self._left.pop(name).float()
        if not tensor.isfinite().all():
            raise NotShared(f"{name} is not finite")
        return tensor

    def finish(self, meaning: str) -> None:
        """Raises `NotShared` for one that was not taken, which is not ``meaning``."""
        if self._left:
            raise NotShared(f"it holds {min(self._left)}, which is no {meaning}")
