"""A real server as a process of its own, and what it used: processor time, memory, steps."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import psutil

ROOT = Path(__file__).parents[1]
POLL_S = 0.05
SETTLE_S = 60
IDLE_CPU = 0.05
"""Of a core."""
PR_SET_PDEATHSIG = 1
WORKER = "server.worker"
"""In the command of every worker."""
LAST_WORDS = 2000
"""Characters of a log's end."""
NAME = "bench"
"""Of the model, for clients."""


@dataclass(frozen=True)
class Usage:
    """Since the start of the server; the difference of two is what lies between them."""

    front_cpu_s: float
    """Of the process that speaks HTTP, and its sandbox."""
    worker_cpu_s: float
    steps: float
    step_s: float
    """In the engine's steps, forward passes included."""
    forward_s: float

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(*(mine - other for mine, other in zip(astuple(self), astuple(earlier), strict=True)))


@dataclass(frozen=True)
class Served:
    """A server that is ready."""

    url: str
    process: psutil.Process
    ready_s: float
    """From the command to the first 200 of /readyz."""
    log: BinaryIO

    def last_words(self) -> str:
        """The end of the server's log."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-LAST_WORDS:]

    @property
    def is_alive(self) -> bool:
        return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE

    def facts(self) -> dict[str, Any]:
        """What /info tells of the first model."""
        models: list[dict[str, Any]] = json.loads(self.get("/info"))["models"]
        return models[0]

    def usage(self) -> Usage:
        text = self.get("/metrics")
        counters = ("sluice_step_seconds_count", "sluice_step_seconds_sum", "sluice_forward_seconds_total")
        return Usage(*self._cpu_times(), *(_counter(text, name) for name in counters))

    def cpu_s(self) -> float:
        """Processor time of all its processes so far."""
        return sum(self._cpu_times())

    def memory_bytes(self) -> dict[str, int]:
        """Resident memory of the front and of its workers; what processes share is counted once."""
        workers = self._workers()
        others = [self.process, *(child for child in self._children() if child not in workers)]
        return {"front_bytes": sum(map(_resident, others)), "worker_bytes": sum(map(_resident, workers))}

    def _cpu_times(self) -> tuple[float, float]:
        workers = self._workers()
        others = [child for child in self._children() if child not in workers]
        return sum(map(_cpu_s, [self.process, *others])), sum(map(_cpu_s, workers))

    def _workers(self) -> list[psutil.Process]:
        return [child for child in self._children() if any(word.startswith(WORKER) for word in _command_line(child))]

    def _children(self) -> list[psutil.Process]:
        return self.process.children(recursive=True)

    def get(self, path: str) -> str:
        """The body of a GET."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return str(answer.read().decode())


class ServerEnded(Exception):
    """The server could not start; the message is the end of its log."""


@contextmanager
def server(flags: Sequence[str]) -> Iterator[Served]:
    """`sluice serve` on a free port, ready. Raises `ServerEnded` if it does not get so far."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "server", "serve", "--port", str(port), *flags]
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        # Safe with threads: the function is one system call.
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, preexec_fn=_end_with_parent)  # noqa: PLW1509
        try:
            while not _is_ready(url):
                if process.poll() is not None:
                    log.seek(0)
                    raise ServerEnded(log.read().decode()[-LAST_WORDS:])
                time.sleep(POLL_S)
            yield Served(url, psutil.Process(process.pid), time.perf_counter() - start, log)
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def servers(model: str, variants: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Served]]:
    """One server for each variant of the flags, by its name. One that cannot start is said and left out.

    Raises `ServerEnded` if none can.
    """
    with ExitStack() as stack:
        running = {}
        for name, flags in variants.items():
            try:
                running[name] = stack.enter_context(server(["--model", f"{NAME}={model}", *flags]))
            except ServerEnded as error:
                problem = error
                print(f"{name} is left out: {str(error).strip().splitlines()[-1]}", flush=True)
        if not running:
            raise problem
        _settle(running.values())
        yield running


def _settle(running: Iterable[Served]) -> None:
    """Until none of them does anything by itself: a server takes its cache's memory while nobody asks it anything."""
    for _ in range(SETTLE_S):
        before = sum(each.cpu_s() for each in running)
        time.sleep(1)
        if sum(each.cpu_s() for each in running) - before < IDLE_CPU:
            return


def _end_with_parent() -> None:
    """In the new process: a bench that is killed leaves no server behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _resident(process: psutil.Process) -> int:
    found = process.memory_full_info()
    return int(getattr(found, "pss", found.rss))


def _cpu_s(process: psutil.Process) -> float:
    """None of one that has ended since it was found."""
    try:
        return sum(process.cpu_times()[:2])
    except psutil.NoSuchProcess:
        return 0.0


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _counter(text: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name}\{{.*\}} (\S+)$", text, re.MULTILINE))


def nice_value() -> int:
    """Of this process and all that it starts."""
    return os.nice(0)
