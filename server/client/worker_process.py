"""One worker process: started with its end of a socket pair, ended without a trace."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from server.client import template
from server.client.connection import Connection
from server.client.environment import environment
from server.client.template import ForkedProcess, Template
from server.client.worker_client import WorkerClient
from server.config import ModelConfig

EXIT_GRACE_S = 1.0
"""A worker whose connection is closed has so long to exit by itself."""
REAP_LIMIT_S = 10.0
DUMP_S = 0.2
"""Time for a stalled worker to write its stacks."""
POLL_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where workers come from."""

    command: Sequence[str]
    """Starts one; it is given ``--fd N``."""
    template: Template | None = None
    """Forks those that it can serve, which is quicker."""
    limit_s: float = 60.0
    """How long the template may take for its own start."""


class WorkerProcess:
    """Owns the process and the front's end of its connection."""

    def __init__(self, process: subprocess.Popen[bytes] | ForkedProcess, connection: Connection) -> None:
        self.process = process
        self.connection = connection

    @classmethod
    async def start(cls, origin: Origin, client: WorkerClient, num_loading: int = 1) -> WorkerProcess:
        """Start the process and give it the model to load, while ``num_loading`` workers do.

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
                process = await _fork(origin, theirs, client.model) or _spawn(origin, theirs, client.model)
            except BaseException:
                connection.close()
                raise
        client.attach(connection)
        connection.send([msgspec.structs.replace(client.load, num_loading=num_loading)])
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


async def _fork(origin: Origin, worker_end: socket.socket, model: ModelConfig) -> ForkedProcess | None:
    if origin.template is None or not template.serves(model):
        return None
    return await origin.template.fork(worker_end, origin.limit_s)


def _spawn(origin: Origin, worker_end: socket.socket, model: ModelConfig) -> subprocess.Popen[bytes]:
    fd = worker_end.fileno()
    return subprocess.Popen(
        [*origin.command, "--fd", str(fd)], pass_fds=[fd], stdin=subprocess.DEVNULL, env=environment(model.threads)
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
