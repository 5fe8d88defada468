"""What works on this machine's GPU and how fast, in eight minutes: correctness first, then a server, then speed.

    python loadtest/gpu_check.py --out loadtest/results/gpu
    python loadtest/gpu_check.py --out loadtest/results/gpu --only kernels families --budget 120
    python loadtest/gpu_check.py --out loadtest/results/cpu --device cpu --tiny  # three minutes, no GPU

It needs the packages that the server needs, and nothing else; models are made from configs with random weights. Every
phase is a process of its own with a time limit. What it finds goes to results.jsonl in the output folder at once, so
that a phase that hangs or crashes costs only itself. The last lines are a table. The exit code is 1 if a check failed
or a phase did not end.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from gpu.results import Results, read, table  # noqa: E402  # beside this file

SLOW_S = 60.0
"""Without a GPU every phase may take this long."""
LEAST_S = 10.0
"""With less of the budget left, a phase is not started."""


@dataclass(frozen=True)
class Phase:
    name: str
    limit_s: float
    module: str
    about: str


PHASES = (
    Phase("facts", 25, "gpu.facts", "versions, memory, bandwidth, products"),
    Phase("kernels", 60, "gpu.kernels", "every attention back end against float64"),
    Phase("families", 90, "gpu.families", "every family against transformers in float32"),
    Phase("waits", 40, "gpu.waits", "where a step waits for the device"),
    Phase("server", 130, "gpu.serving", "a server over HTTP, its worker killed, and its end"),
    Phase("baseline", 60, "gpu.baseline", "transformers' generate on the same model"),
    Phase("engine", 75, "gpu.engine", "the engine alone: throughput, decoding, prompts"),
    Phase("profile", 20, "gpu.profile", "kernels by time, launches of a step"),
)
"""In order of importance. The limits sum up to 500 s."""


def main() -> int:
    options = arguments()
    if options.phase:
        return run_phase(options)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.jsonl"
    num_before = len(read(path)) if path.exists() else 0
    results = Results(path)
    start_s = time.monotonic()
    for phase in PHASES:
        if options.only and phase.name not in options.only:
            continue
        left_s = options.budget - (time.monotonic() - start_s)
        if left_s < LEAST_S:
            results.phase(phase.name, 0.0, "not started: the budget is used up")
            continue
        print(f"== {phase.name}: {phase.about}", flush=True)
        began_s = time.monotonic()
        limit_s = phase.limit_s if options.device != "cpu" else max(SLOW_S, phase.limit_s)
        state = in_a_process(phase, options, min(limit_s, left_s))
        results.phase(phase.name, time.monotonic() - began_s, state)
    records = read(path)[num_before:]
    print(table(records))
    return int(any(record.get("ok") is False for record in records))


def in_a_process(phase: Phase, options: Namespace, limit_s: float) -> str:
    """How it ended: ``done``, or what went wrong."""
    command = [sys.executable, __file__, "--phase", phase.name, "--out", str(options.out), "--device", options.device]
    command += ["--limit", str(limit_s), "--tokenizer", str(options.tokenizer), *(["--tiny"] if options.tiny else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    # A group of its own, so that a server that it started ends with it.
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return f"stopped after {limit_s:.0f} s"
    finally:
        end_group(process)
    return "done" if code == 0 else f"ended with {code}"


def end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_phase(options: Namespace) -> int:
    from gpu.setting import Setting

    phase = next(phase for phase in PHASES if phase.name == options.phase)
    setting = Setting(
        device=options.device,
        is_tiny=options.tiny,
        folder=options.out,
        tokenizer=options.tokenizer,
        deadline_s=time.monotonic() + options.limit,
        results=Results(options.out / "results.jsonl", phase.name),
    )
    importlib.import_module(phase.module).run(setting)
    return 0


def arguments() -> Namespace:
    names = [phase.name for phase in PHASES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.jsonl and the models")
    parser.add_argument("--device", default="cuda:0", help="cuda:N or cpu")
    parser.add_argument("--tiny", action="store_true", help="small models and short runs: tries the script itself")
    parser.add_argument("--only", nargs="+", choices=names, help="these phases alone")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds for all phases together")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "models/smollm2-135m-instruct",
                        help="folder with a tokenizer for the models; without it they get one of bytes")  # fmt: skip
    parser.add_argument("--phase", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=60.0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
