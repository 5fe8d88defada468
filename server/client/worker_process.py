"""One worker process: started with its end of a socket pair, ended without a trace."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from server.client.connection import Connection
from server.client.worker_client import WorkerClient
from server.config import ModelConfig

EXIT_GRACE_S = 1.0
"""A worker whose connection is closed has so long to exit by itself."""
REAP_LIMIT_S = 10.0
DUMP_S = 0.2
"""Time for a stalled worker to write its stacks."""
POLL_S = 0.01


class WorkerProcess:
    """Owns the process and the front's end of its connection."""

    def __init__(self, process: subprocess.Popen[bytes], connection: Connection) -> None:
        self.process = process
        self.connection = connection

    @classmethod
    async def start(cls, command: Sequence[str], client: WorkerClient) -> WorkerProcess:
        """Start the process and give it the model to load.

        Its output goes where ours goes. It is started from this thread, because it is to die with it.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                connection = await Connection.open(ours, client.on_replies, client.on_writable)
            except BaseException:
                ours.close()
                raise
            try:
                process = _spawn(command, theirs.fileno(), client.model)
            except BaseException:
                connection.close()
                raise
        client.attach(connection)
        connection.send([client.load])
        return cls(process, connection)

    async def end(self) -> int:
        """Return code of the process, which is gone afterwards, also if this is cancelled."""
        self.connection.close()
        try:
            await self._wait(EXIT_GRACE_S)
        finally:
            self.kill()
        await self._wait(REAP_LIMIT_S)
        return -signal.SIGKILL if self.process.returncode is None else self.process.returncode

    async def kill_with_stacks(self) -> None:
        """End a worker that has stalled; it writes first where it was."""
        self.process.send_signal(signal.SIGUSR1)
        await self._wait(DUMP_S)
        self.kill()

    def kill(self) -> None:
        self.process.kill()

    async def _wait(self, limit_s: float) -> None:
        deadline_s = time.monotonic() + limit_s
        # Looked at a few times where a death is awaited, and cancelled without a trace: no thread, no signal handler.
        while self.process.poll() is None and time.monotonic() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)


def _spawn(command: Sequence[str], fd: int, model: ModelConfig) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*command, "--fd", str(fd)], pass_fds=[fd], stdin=subprocess.DEVNULL, env=environment(model)
    )


def describe_exit(return_code: int) -> str:
    """How a process ended, in words.

    >>> describe_exit(-9), describe_exit(70)
    ('signal SIGKILL', 'exit code 70')
    """
    if return_code >= 0:
        return f"exit code {return_code}"
    names = {number.value: number.name for number in signal.Signals}
    return f"signal {names.get(-return_code, -return_code)}"


def environment(model: ModelConfig) -> dict[str, str]:
    """Our own environment, passed on, and what libraries read from theirs before any code of ours runs."""
    return {
        # Threads wait for the next parallel region awake, for some tens of microseconds: a decoding step has hundreds,
        # and waking threads for each costs as much as the step. Without a bound they would take the front's core.
        "GOMP_SPINCOUNT": "20000",
        **os.environ,
        "OMP_NUM_THREADS": str(model.threads or available_cpus()),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
    }


def available_cpus() -> int:
    """CPUs that this process may use: of its affinity, and of its container's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, math.ceil(int(quota) / int(period))))
