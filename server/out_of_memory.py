"""Errors that mean that memory ran out, told from all others of the same class."""

from __future__ import annotations

import torch

TEXTS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc")
"""What RuntimeErrors of torch say that are about memory."""


def is_memory_error(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in TEXTS)


def raise_if_memory(error: BaseException) -> None:
    """Raise ``error`` again where it says nothing about what was tried, because memory ran out."""
    if is_memory_error(error):
        raise error
