"""What of Triton is there. It has packages for Linux alone."""

from __future__ import annotations

import importlib.util
from importlib.metadata import version

import pytest

IS_INSTALLED = importlib.util.find_spec("triton") is not None


def _numbers(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(package).split(".")[:2])


needs_triton = pytest.mark.skipif(not IS_INSTALLED, reason="triton is not installed")
needs_interpreter = pytest.mark.skipif(
    not IS_INSTALLED or (_numbers("triton") < (3, 7) and _numbers("numpy") >= (2, 4)),
    reason="triton is not installed, or its interpreter does not know this numpy",
)
