"""Weights in torch's own files, which can hold any Python object. Only tensors are read, and no code is run."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._weights_only_unpickler import UnpicklingError  # type: ignore[attr-defined]

from server.errors import ConfigurationError
from server.models.configs import first_line
from server.models.describe import refuse
from server.out_of_memory import raise_if_memory

FAILURES = (
    EOFError, RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError, RecursionError,
    zipfile.BadZipFile, OverflowError, OSError,
)  # fmt: skip
"""What torch raises for a file that is damaged."""
_GLOBAL = re.compile(r"GLOBAL (\S+)")


def read_pickled(path: Path) -> dict[str, Tensor]:
    """All tensors by name, on the CPU. Raises `ConfigurationError` for anything else, before it does anything."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        raise _refusal(path, error) from None
    except FAILURES as error:
        raise_if_memory(error)
        raise refuse(f"{path} cannot be read ({first_line(error)}). Fetch the folder again.") from error
    if not isinstance(content, dict) or not content:
        raise refuse(f"{path} holds no tensors by name. Save the model's state_dict() in it.")
    size = path.stat().st_size
    return {_checked_name(path, name, value, size): value.detach() for name, value in content.items()}


def _refusal(path: Path, error: Exception) -> ConfigurationError:
    wanted = _GLOBAL.search(str(error))
    if wanted is None:
        return refuse(f"{path} is not a file of weights. Fetch the folder again.")
    return refuse(
        f"{path} asks for {wanted[1][:100]}, which could run code, so it was not read. "
        "Get the weights from a source that you trust."
    )


def _checked_name(path: Path, name: Any, value: Any, size: int) -> str:
    if not isinstance(name, str):
        raise refuse(
            f"{path} names a tensor {str(name)[:100]}, which is not text. Save the model's state_dict() alone."
        )
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise refuse(f"{path} holds {name[:100]}, a {kind} and not a tensor. Save the model's state_dict() alone.")
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise refuse(f"{path} holds {name[:100]}, a tensor that is not dense. Save the model with dense weights.")
    if value.is_complex():
        raise refuse(f"{path} holds {name[:100]}, a tensor of complex numbers. Save the model with real weights.")
    if value.nbytes > size:
        # Its strides repeat what the file has.
        raise refuse(
            f"{path} holds {name[:100]}, a tensor of {value.nbytes} bytes, and the file has {size}. "
            "Save the model again without expanded tensors."
        )
    return name
