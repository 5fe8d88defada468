"""The AMX instructions give the bits of the plain loops: on the processor that has them, elsewhere emulated."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.scale import SCALE
from tests.native import variants

ROOT = Path(__file__).parents[2]
EMULATOR = Path(__file__).with_name("amx_emulator.c")
NUM_TRIALS = 25 * SCALE


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a process that can run the AMX kernels."""
    if not variants.lacking("_amx"):
        return dict(os.environ)
    if missing := variants.lacking("_tiles"):
        pytest.skip(f"the processor lacks {missing}")
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no compiler for the emulator")
    library = tmp_path_factory.mktemp("emulator") / "amx_emulator.so"
    options = ["-O2", "-mfma", "-ffp-contract=off", "-fvisibility=hidden", "-fPIC", "-shared"]
    subprocess.run([compiler, *options, str(EMULATOR), "-o", str(library), "-lm"], check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}


def run(what: str, num_trials: int, environment: dict[str, str]) -> None:
    trials = [sys.executable, "-m", "tests.native.amx_trials", what, str(num_trials)]
    limit_s = 280 * SCALE
    done = subprocess.run(
        trials, check=False, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=limit_s
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{num_trials} equal\n"


@pytest.mark.parametrize("what", ["products", "attention", "encoder"])
def test_the_instructions_give_the_bits_of_the_plain_loops(what: str, environment: dict[str, str]) -> None:
    run(what, NUM_TRIALS, environment)


def test_a_worker_that_may_use_the_instructions_chooses_them(environment: dict[str, str]) -> None:
    run("trial", 1, environment)
