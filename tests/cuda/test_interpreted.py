"""Runs the cases of `in_interpreter.py` in a process of their own: Triton decides on import whether it interprets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda.installed import needs_interpreter

ROOT = Path(__file__).parents[2]


@needs_interpreter
@pytest.mark.timeout(900)
def test_the_kernels_give_the_results_of_the_reference_in_tritons_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/cuda/in_interpreter.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
