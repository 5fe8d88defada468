"""A back end is tried in a process of its own, whose end is the answer, however it comes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from server.engine.attention import cuda_trial
from tests.cuda.installed import needs_triton
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


def test_kernels_that_have_passed_are_not_tried_again_until_something_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers: list[str | None] = ["they fail", None]
    asked = []

    def said(trial: cuda_trial.Trial) -> str | None:
        asked.append(trial)
        return answers[len(asked) - 1]

    monkeypatch.setattr(cuda_trial, "_said", said)
    monkeypatch.setattr(cuda_trial, "passed_path", lambda trial: tmp_path / "cache" / trial.dtype)
    for expected in ("they fail", None, None):
        cuda_trial.problem.cache_clear()
        assert problem() == expected
    assert len(asked) == 2


@needs_triton
def test_what_has_passed_is_forgotten_with_another_device_or_layer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    paths = set()
    for name in ("NVIDIA H200", "NVIDIA L4"):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device, name=name: SimpleNamespace(name=name))
        for spec in (layer_spec(), layer_spec(window=7)):
            for _ in range(2):
                trial = cuda_trial.Trial(
                    backend="triton", specs=(spec,), block_size=32, dtype="bfloat16", device="cuda:0",
                    deterministic=False,
                )  # fmt: skip
                paths.add(cuda_trial.passed_path(trial))
    assert len(paths) == 4
    assert {path.parent for path in paths if path is not None} == {tmp_path}
