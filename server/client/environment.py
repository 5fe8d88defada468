"""What a worker's process finds in its environment, which libraries read before any code of ours runs."""

from __future__ import annotations

import math
import os
from pathlib import Path

MIB = 1024 * 1024


def environment(threads: int = 0) -> dict[str, str]:
    """Our own environment, passed on, and what concerns a worker of so many threads; 0 takes all processors."""
    return {
        # Threads wait for the next parallel region awake, for some tens of microseconds: a decoding step has hundreds,
        # and waking threads for each costs as much as the step. Without a bound they would take the front's core.
        "GOMP_SPINCOUNT": "20000",
        # A step's tensors come from memory that is kept. Given back to the system after each step and taken again page
        # by page, they cost prefill a fifth.
        "MALLOC_MMAP_THRESHOLD_": str(128 * MIB),
        "MALLOC_TRIM_THRESHOLD_": str(256 * MIB),
        "MALLOC_TOP_PAD_": str(16 * MIB),
        # In huge pages, where the system gives them on request: a step reads all weights, and a tenth of it would go
        # into looking up small pages.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        **os.environ,
        "OMP_NUM_THREADS": str(threads or available_cpus()),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
    }


def available_cpus() -> int:
    """CPUs that this process may use: of its affinity, and of its container's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, math.ceil(int(quota) / int(period))))
