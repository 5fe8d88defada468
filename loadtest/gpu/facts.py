"""What this machine is: versions, the card, and the ceilings of its memory and its products."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess

import torch

from gpu.setting import Setting

PACKAGES = ("torch", "transformers", "triton", "flashinfer-python", "flash-attn", "numpy", "safetensors")
COPIED_BYTES = 4 * 1024**3
WIDTH = 8192


def run(setting: Setting) -> None:
    device = setting.use_device()
    results = setting.results
    results.add("python", version=platform.python_version(), machine=platform.machine())
    results.add("packages", **{name: _version(name) for name in PACKAGES})
    if setting.is_cuda:
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        results.add(
            "card",
            device_name=properties.name,
            capability=f"{properties.major}.{properties.minor}",
            processors=properties.multi_processor_count,
            free_gib=free / 2**30,
            total_gib=total / 2**30,
            cudnn=torch.backends.cudnn.version(),
            driver=_driver(),
        )
    num_bytes, width = setting.pick(COPIED_BYTES, 2**24), setting.pick(WIDTH, 256)
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = setting.seconds(lambda: target.copy_(source), 5)
    results.add("copy", gigabytes_per_s=2 * num_bytes / seconds / 1e9)
    for dtype in (torch.bfloat16, torch.float16):
        left, right = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
        seconds = setting.seconds(lambda left=left, right=right: left @ right, 5)
        results.add("product", dtype=str(dtype), teraflops=2 * width**3 / seconds / 1e12)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({error})"
