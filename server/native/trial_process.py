"""Runs a trial in a child process first: instructions that kill it, or that never end, leave this process alone."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import resource
import select
import signal
import warnings
from collections.abc import Callable
from typing import NoReturn

import torch

Trial = Callable[[], str | None]
"""What is wrong with the kernels in use, as the end of a sentence."""

LIMIT_S = 30.0
PR_SET_PDEATHSIG = 1


def problem(trial: Trial, limit_s: float = LIMIT_S) -> str | None:
    """What ``trial`` says in a fork of this process, or how the fork ended."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python warns of forks beside other threads. The child starts none and takes no lock of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _answer(trial, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        is_late = not select.select([pipe], [], [], limit_s)[0]
        if is_late:
            os.kill(child, signal.SIGKILL)
        said = pipe.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if is_late:
        return f"a trial of them did not end in {limit_s:.0f} s"
    if status < 0:
        return f"a trial of them ended with {signal.Signals(-status).name}"
    return said or (None if status == 0 else f"a trial of them ended with exit code {status}")


def _answer(trial: Trial, writer: int) -> NoReturn:
    """In the child. One thread: OpenMP's others have stayed in the parent."""
    status = 1
    try:
        # A fork does not inherit it: the child ends with its parent.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # A crash is an answer: no dump, no traceback.
        faulthandler.disable()
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        torch.set_num_threads(1)
        try:
            said = trial()
        except Exception as error:
            said = f"a trial of them failed: {type(error).__name__}: {error}"
        os.write(writer, (said or "").encode()[:4000])
        status = 0
    finally:
        os._exit(status)
