"""Seconds from the command to ready, and the memory that is held then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from time import perf_counter

from plan import Plan
from rounds import Numbers, median
from served import NAME, ROOT, server


def measure(plan: Plan) -> Numbers:
    """Of each default model alone and of all together; and how long the help takes."""
    commands = plan.pick(_commands(), _command_of(plan))
    return {"help_s": median(_help_s() for _ in range(plan.rounds)), **_starts(commands, plan)}


def of_model(plan: Plan) -> Numbers:
    """Of the plan's model alone."""
    return _starts(_command_of(plan), plan)


def _starts(commands: dict[str, list[str]], plan: Plan) -> Numbers:
    """By name the medians of the rounds. One start more comes before, for the disk's cache."""
    starts: dict[str, list[Numbers]] = {name: [] for name in commands}
    for _ in range(plan.pick(plan.rounds + 1, 1)):
        for name, flags in commands.items():
            with server(flags) as served:
                starts[name].append({"ready_s": served.ready_s, **served.memory_bytes()})
    warm = {name: found[1:] or found for name, found in starts.items()}
    found = {name: {key: median(each[key] for each in found) for key in found[0]} for name, found in warm.items()}
    return {"models": found, "rounds": starts}


def _command_of(plan: Plan) -> dict[str, list[str]]:
    return {Path(plan.model).name: ["--model", f"{NAME}={plan.model}", *plan.serve_flags]}


def _commands() -> dict[str, list[str]]:
    models = ROOT / "models"
    adapter = ["--model", f"{NAME}={ROOT}/server/defaults/sentiment", "--base", f"{models}/minilm-l6"]
    return {
        "smollm2-135m-instruct": ["--model", f"{NAME}={models}/smollm2-135m-instruct"],
        "sentiment": adapter,
        "rampart": ["--model", f"{NAME}={models}/rampart"],
        "all three": ["--config", f"{ROOT}/deploy/defaults.toml"],
    }


def _help_s() -> float:
    start = perf_counter()
    subprocess.run([sys.executable, "-m", "server", "--help"], cwd=ROOT, capture_output=True, check=True)
    return perf_counter() - start
