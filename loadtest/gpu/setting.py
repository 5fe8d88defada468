"""What a phase is run with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from gpu.results import Results

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    device: str
    is_tiny: bool
    folder: Path
    """For models and logs."""
    tokenizer: Path
    deadline_s: float
    """When the phase is stopped, by the monotonic clock."""
    results: Results

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def left_s(self) -> float:
        return self.deadline_s - time.monotonic()

    def pick(self, full: T, tiny: T) -> T:
        return tiny if self.is_tiny else full

    def use_device(self) -> torch.device:
        """The device, as a worker sets it up."""
        from server.config import ModelConfig
        from server.models.device import choose_device, use_device

        device = choose_device(ModelConfig(name="check", path="unused", device=self.device))
        use_device(device)
        if device.type == "cpu":
            torch.set_num_threads(1)
        return device

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], num_calls: int) -> float:
        """Of one call, after one that does not count."""
        work()
        self.synchronize()
        start_s = time.perf_counter()
        for _ in range(num_calls):
            work()
        self.synchronize()
        return (time.perf_counter() - start_s) / num_calls
