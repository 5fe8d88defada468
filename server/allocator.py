"""When the C allocator gives freed memory back to the system. Only glibc's is known here; others are left alone."""

from __future__ import annotations

import ctypes

LARGE_BYTES = 256 * 1024

M_MMAP_THRESHOLD = -3
"""What `mallopt` calls the size from which a block is a mapping of its own."""


def return_large_blocks() -> None:
    """Return each freed block of at least `LARGE_BYTES` to the system at once, for the rest of this process.

    By default glibc raises this size to that of the largest block freed so far, up to 32 MiB. After one body of
    megabytes, such bodies would lie among what lives longer, and their memory would stay with the process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def trim() -> None:
    """Give back what is free now."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
