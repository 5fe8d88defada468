"""A trial in a child process: whatever becomes of the child, this process goes on and knows it."""

from __future__ import annotations

import os
import signal
import time

import pytest

from server.native import trial_process


def test_what_the_trial_says_comes_back() -> None:
    assert trial_process.problem(lambda: None) is None
    assert trial_process.problem(lambda: "its sums are wrong") == "its sums are wrong"


@pytest.mark.parametrize("name", ["SIGILL", "SIGSEGV", "SIGKILL"])
def test_a_crash_is_named(name: str) -> None:
    def crash() -> None:
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(60)

    assert trial_process.problem(crash) == f"a trial of them ended with {name}"


def test_an_exception_is_named() -> None:
    def fail() -> None:
        raise ValueError("no tiles")

    assert trial_process.problem(fail) == "a trial of them failed: ValueError: no tiles"


def test_a_trial_that_does_not_end_is_killed() -> None:
    def wait() -> None:
        time.sleep(60)

    assert trial_process.problem(wait, limit_s=0.2) == "a trial of them did not end in 0 s"


def test_an_exit_is_not_a_success() -> None:
    assert trial_process.problem(lambda: os._exit(3)) == "a trial of them ended with exit code 3"
