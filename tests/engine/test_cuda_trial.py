"""A back end is tried in a process of its own, whose end is the answer, however it comes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from server.engine.attention import cuda_trial
from tests.engine.attention_driving import CPU, layer_spec


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    cuda_trial.problem.cache_clear()
    yield
    cuda_trial.problem.cache_clear()


def problem() -> str | None:
    specs = (layer_spec(window=7), layer_spec())
    return cuda_trial.problem("flash-attn", specs, 32, torch.bfloat16, CPU, deterministic=False)


def test_the_other_process_says_why_a_back_end_cannot_serve() -> None:
    assert str(problem()).startswith("it is not installed (")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('noise'); print('null')", None),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "a trial of it ended with SIGSEGV"),
        ("raise SystemExit('no compiler')", "a trial of it ended with exit code 1 (no compiler)"),
        ("import time; time.sleep(60)", "a trial of it did not end in 2 s"),
    ],
)
def test_a_crash_or_a_process_that_hangs_is_an_answer(
    code: str, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = subprocess.run

    def other(command: list[str], **options: Any) -> Any:
        return run([sys.executable, "-c", code], **options)

    monkeypatch.setattr(cuda_trial.subprocess, "run", other)
    monkeypatch.setattr(cuda_trial, "LIMIT_S", 2.0)
    assert problem() == said
