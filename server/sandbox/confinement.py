"""What the sandbox process takes from itself before it runs anything: memory, files, the network, other processes."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

MAX_MEMORY_BYTES = 512 * 1024 * 1024
"""Address space beyond what the process has when it starts."""
PR_SET_PDEATHSIG = 1
REFUSED_EVENTS = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill", "os.remove",
    "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate", "os.putenv",
    "shutil.", "signal.", "ctypes.", "pty.", "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser.",
)  # fmt: skip
"""Beginnings of the interpreter's own names for what no function here does."""


def confine() -> None:
    """For the rest of the process's life."""
    if sys.platform == "linux":
        # Besides the end of the connection, which a function that never returns does not see.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory()
    sys.addaudithook(_refuse)


def limit_processor_time(limit_s: float) -> None:
    """End the process by a signal after so much more of it, in whole seconds: the last resort if the front is stuck."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime + limit_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _limit_memory() -> None:
    # Not where there is no /proc: there a call is limited by its time alone.
    statm = Path("/proc/self/statm")
    if statm.exists():
        num_bytes = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MAX_MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Modules are still read as they are needed; nothing is written."""
    if event.startswith(REFUSED_EVENTS):
        raise PermissionError(f"{event} is not allowed in the sandbox")
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        raise PermissionError("the sandbox cannot write files")
