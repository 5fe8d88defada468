"""Tries a back end's kernels in a process of its own first: an illegal access there leaves this GPU context alone.

Kernels that are compiled on first use are compiled there too, and found by this process in the compiler's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import msgspec
import torch

from server.cuda import kernels
from server.modules.attention import LayerSpec

LIMIT_S = 180.0


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """The input of the other process."""

    backend: str
    specs: tuple[LayerSpec, ...]
    block_size: int
    dtype: str
    device: str
    deterministic: bool


@cache
def problem(
    backend: str,
    specs: tuple[LayerSpec, ...],
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    deterministic: bool,
) -> str | None:
    """What is wrong with the back end of that name, as the end of a sentence."""
    trial = Trial(
        backend=backend,
        specs=specs,
        block_size=block_size,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        deterministic=deterministic,
    )
    passed = passed_path(trial)
    if passed is not None and passed.exists():
        return None
    said = _said(trial)
    if said is None and passed is not None:
        with contextlib.suppress(OSError):
            passed.parent.mkdir(parents=True, exist_ok=True)
            passed.touch()
    return said


def passed_path(trial: Trial) -> Path | None:
    """A file beside our compiled kernels that says that they have passed on this device, so that a restart is quick.

    Its name follows from all that decides it. None for kernels that are not ours.
    """
    if trial.backend != "triton" or not torch.cuda.is_available():
        return None
    import triton

    sources = sorted(Path(kernels.__file__).parent.glob("*.py")) + sorted(Path(__file__).parent.glob("*.py"))
    device = torch.cuda.get_device_properties(trial.device)
    decisive = hashlib.sha256(msgspec.json.encode(trial))
    for part in (torch.__version__, triton.__version__, str(torch.version.cuda), device.name):
        decisive.update(part.encode() + b"\0")
    for source in sources:
        decisive.update(source.read_bytes())
    return Path(triton.knobs.cache.dir) / f"sluice-passed-{decisive.hexdigest()}"


def _said(trial: Trial) -> str | None:
    """What the other process says, or how it ended."""
    try:
        run = subprocess.run(
            [sys.executable, "-m", __name__],
            input=msgspec.json.encode(trial),
            capture_output=True,
            check=False,
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"a trial of it did not end in {LIMIT_S:.0f} s"
    if run.returncode == 0:
        said: str | None = msgspec.json.decode(run.stdout.splitlines()[-1], type=str | None)
        return said
    how = signal.Signals(-run.returncode).name if run.returncode < 0 else f"exit code {run.returncode}"
    lines = run.stderr.decode(errors="replace").strip().splitlines()
    return f"a trial of it ended with {how}" + (f" ({lines[-1][:300]})" if lines else "")


def main() -> None:
    """The other process: reads a `Trial`, writes what is wrong as JSON, null for nothing."""
    from server.engine.attention import cuda

    trial = msgspec.json.decode(sys.stdin.buffer.read(), type=Trial)
    backend = next(backend for backend in cuda.BACKENDS if backend.name == trial.backend)
    device, dtype = torch.device(trial.device), getattr(torch, trial.dtype)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    options = (list(trial.specs), trial.block_size, dtype, device)
    with torch.inference_mode():
        said = backend.problem(*options)
        said = said or cuda.trial_problem(backend, *options, deterministic=trial.deterministic)
    if device.type == "cuda":
        # What goes wrong on the device may show late.
        torch.cuda.synchronize()
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(said) + b"\n")


if __name__ == "__main__":
    main()
