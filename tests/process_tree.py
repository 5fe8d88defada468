"""A process that a test started, and all that it started itself: found, and ended together."""

from __future__ import annotations

import contextlib
import signal
import subprocess

import psutil


def descendants(pid: int) -> list[psutil.Process]:
    """None of a process that is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def end_tree(process: subprocess.Popen[bytes], number: signal.Signals, *, within_s: float) -> None:
    """Ask the process by a signal and kill it if it does not end in time; what is left below it is killed too."""
    below = descendants(process.pid)
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    _, alive = psutil.wait_procs(below, timeout=10)
    for one in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
