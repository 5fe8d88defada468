"""Memory for caches that is taken in the background."""

from __future__ import annotations

import subprocess
import sys

import torch

from server.engine.zeroed import SLICE_BYTES, zeroed

TAKES_UNTIL_THE_END = """
import torch
from server.engine.zeroed import take_pages, zeroed
for _ in range(60):
    take_pages([zeroed([1 << 20], torch.float32, torch.device("cpu")) for _ in range(20)], lambda: 0.0)
"""


def test_memory_is_zero_and_can_be_written_to() -> None:
    memory = zeroed([3, SLICE_BYTES], torch.float32, torch.device("cpu"))
    assert memory.shape == (3, SLICE_BYTES) and not memory.any()
    memory[1] = 2.0
    assert memory.sum().item() == 2.0 * SLICE_BYTES


def test_a_process_that_ends_while_memory_is_taken_ends_well() -> None:
    done = subprocess.run([sys.executable, "-c", TAKES_UNTIL_THE_END], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
