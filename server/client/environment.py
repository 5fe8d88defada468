"""What other processes of the server find in their environment, which libraries read before any code of ours runs.

Only variables of known purpose are passed on: API keys and other secrets in the server's environment stay with it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

MIB = 1024 * 1024

BASIC = frozenset({"PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL"})
"""What any process needs, besides Python's own variables."""
_WORKERS = frozenset(
    {"CC", "CXX", "HOME", "LD_PRELOAD", "LOGNAME", "TEMP", "TMP", "TMPDIR", "TZ", "USER", "VIRTUAL_ENV"}
)
_WORKERS_PREFIXES = (
    "AMD_", "CUBLAS_", "CUDA_", "CUDNN_", "DNNL_", "FLASHINFER_", "GLIBC_", "GOMP_", "GPU_", "HF_", "HIP_", "HSA_",
    "KMP_", "LC_", "MALLOC_", "MKL_", "NCCL_", "NVIDIA_", "NVTE_", "OMP_", "ONEDNN_", "OPENBLAS_", "PYTORCH_", "ROCM_",
    "ROCR_", "SAFETENSORS_", "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "TRITON_", "XDG_",
)  # fmt: skip
"""What torch, transformers and the system's libraries read."""
_SECRET = re.compile(r"TOKEN$|SECRET|PASSW|CREDENTIAL|AUTH|(^|_)KEYS?$|_KEY_")
"""Names such as HF_TOKEN, which nothing but a download needs."""


def environment(threads: int = 0) -> dict[str, str]:
    """The variables of a worker process with this many threads; 0 uses all available CPUs."""
    return {
        # Threads wait awake for the next parallel region, since a decoding step has hundreds of them, and sleep after
        # some microseconds. With a long wait they use up their time slices waiting for each other as soon as another
        # process is busy: beside two such processes, a step took twenty times as long with 20000 turns as alone, and
        # twice as long with 1000. Alone, both are equally fast.
        "GOMP_SPINCOUNT": "1000",
        # A step's tensors come from memory that is kept. Given back to the system after each step and taken again page
        # by page, they cost prefill a fifth.
        "MALLOC_MMAP_THRESHOLD_": str(128 * MIB),
        "MALLOC_TRIM_THRESHOLD_": str(256 * MIB),
        "MALLOC_TOP_PAD_": str(16 * MIB),
        # In huge pages, where the system gives them on request: a step reads all weights, and a tenth of it would go
        # into looking up small pages.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        **passed_on(os.environ),
        "OMP_NUM_THREADS": str(threads or available_cpus()),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
    }


def passed_on(ours: Mapping[str, str]) -> dict[str, str]:
    """What a worker gets of ``ours``.

    >>> passed_on({"PATH": "/bin", "OMP_WAIT_POLICY": "active", "HF_TOKEN": "hf_1", "SLUICE_API_KEYS": "k"})
    {'PATH': '/bin', 'OMP_WAIT_POLICY': 'active'}
    """
    return {
        name: value
        for name, value in ours.items()
        if (is_basic(name) or name in _WORKERS or name.startswith(_WORKERS_PREFIXES)) and not _SECRET.search(name)
    }


def is_basic(name: str) -> bool:
    """Whether every process of the server gets this variable.

    >>> is_basic("PYTHONPATH"), is_basic("SLUICE_API_KEYS")
    (True, False)
    """
    return name in BASIC or name.startswith("PYTHON")


def available_cpus() -> int:
    """CPUs that this process may use: of its affinity, and of its container's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, math.ceil(int(quota) / int(period))))
