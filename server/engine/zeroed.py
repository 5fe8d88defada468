"""Memory for caches: zeros that are the operating system's to give, taken for good in the background.

Writing zeros into gigabytes takes seconds, and a model would be ready only after them. Fresh pages are zero anyway.
Huge pages where there are any: attention reads from all over the cache, and each small page costs a look-up of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import math
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

log = logging.getLogger("sluice.engine")

MADV_POPULATE_WRITE = 23
"""Makes pages present, whatever is in them: another thread may use them meanwhile. Linux 5.14 and newer."""
SLICE_BYTES = 1 << 21
"""Taken at a time: a page fault elsewhere in the process waits no longer than this takes."""
FIRST_PARTS = 16
"""Of each tensor's beginning, one part in so many is taken before all others: blocks are given out from the first."""
LEAST_PRIORITY = 19
QUIET_S = 0.5
"""Nothing is taken until the last step is so long ago: one that waits for a processor while it holds the lock of the
process's memory keeps the step's threads from theirs, for a tenth of a second each time."""
THREAD_NAME = "pages"
_is_over = threading.Event()
"""The process ends."""


def zeroed(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of zeros. On a CPU its pages come when they are first written to, or from `Pages`."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or sys.platform != "linux" or num_bytes < SLICE_BYTES:
        return torch.zeros(*shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, num_bytes)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    # The tensor keeps the map, which goes with it.
    return torch.frombuffer(memory, dtype=dtype).view(*shape)


def take_pages(tensors: Sequence[Tensor], last_step_s: Callable[[], float]) -> None:
    """Begin to make the pages of ``tensors`` present, in a thread that rests while there are steps.

    So that few sequences pay for them, and memory that is not there is missed soon. ``last_step_s`` is when the last
    step began, by `time.monotonic`.
    """
    if sys.platform == "linux" and (mapped := [t for t in tensors if t.device.type == "cpu"]):
        threading.Thread(target=_take, args=(mapped, last_step_s), name=THREAD_NAME, daemon=True).start()


@atexit.register
def _end_threads() -> None:
    """A thread that the interpreter ends while it frees a tensor takes the process down."""
    _is_over.set()
    for thread in threading.enumerate():
        if thread.name == THREAD_NAME:
            thread.join()


def _take(tensors: list[Tensor], last_step_s: Callable[[], float]) -> None:
    # What else the machine does goes first. The steps of this process do not wait for it: between them it stops.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_PRIORITY)
    # ctypes, because the interpreter's lock is free meanwhile.
    libc = ctypes.CDLL(None, use_errno=True)
    page = mmap.PAGESIZE
    for part in range(FIRST_PARTS):
        for tensor in tensors:
            size = tensor.numel() * tensor.itemsize
            begin, end = (tensor.data_ptr() + size * i // FIRST_PARTS for i in (part, part + 1))
            for start in range(begin // page * page, end, SLICE_BYTES):
                while (since_s := time.monotonic() - last_step_s()) < QUIET_S and not _is_over.is_set():
                    _is_over.wait(QUIET_S - since_s)
                if _is_over.is_set():
                    return
                length = min(SLICE_BYTES, end - start)
                if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_POPULATE_WRITE):
                    log.debug("pages are taken as they are used: %s", os.strerror(ctypes.get_errno()))
                    return
