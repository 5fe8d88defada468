"""The front's handle of the template, a process that forks workers which have their imports behind them.

Light, because it is started before the front's own imports. Whatever fails here is answered with None, and the worker
is started the slow way.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from server.client.environment import environment
from server.config import ModelConfig

TEMPLATE_COMMAND = (sys.executable, "-m", "server.worker.template")
PID = struct.Struct("<i")
PR_SET_CHILD_SUBREAPER = 36
DEVICE_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""There is one of them where a machine has a GPU that torch can use: NVIDIA's, AMD's, WSL's."""

log = logging.getLogger("sluice.client")


class ForkedProcess:
    """A worker that the template forked and that is our child: what we use of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its return code once it has ended, negative for a signal."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                # Somebody else has waited for it: it is gone, and nobody knows how.
                self.returncode = 0
            else:
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        # As long as it has not been waited for, its number is nobody else's.
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Template:
    """Owns the template process and our end of its socket."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._turn = asyncio.Lock()
        """Answers come in the order of the questions: one at a time."""

    @classmethod
    def start(cls, models: Iterable[ModelConfig], command: Sequence[str] = TEMPLATE_COMMAND) -> Template | None:
        """Begin its imports; None where no worker could be forked from it.

        It is started from the main thread, because it is to die with it.
        """
        if not any(map(serves, models)) or not _adopt_orphans():
            return None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        with theirs:
            try:
                process = subprocess.Popen(
                    [*command, "--fd", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    # A library that starts threads when it is imported could not be forked.
                    env={**environment(), "OPENBLAS_NUM_THREADS": "1"},
                )
            except OSError as error:
                log.warning(
                    "the template process of the workers could not be started", extra={"fields": {"error": str(error)}}
                )
                ours.close()
                return None
        return cls(process, ours)

    async def fork(self, worker_end: socket.socket, limit_s: float) -> ForkedProcess | None:
        """A worker that serves ``worker_end``; None if the template cannot make one, now and from now on."""
        async with self._turn:
            if self._process.poll() is not None:
                return None
            try:
                async with asyncio.timeout(limit_s):
                    pid = await self._ask(worker_end)
            except (OSError, TimeoutError) as error:
                pid = 0
                log.debug("the template process of the workers does not respond: %s", error)
            except asyncio.CancelledError:
                # Its answer may still come, and would be taken for that to the next question.
                self.close()
                raise
            if not pid:
                log.warning("workers start without the template process from now on")
                self.close()
                return None
        return ForkedProcess(pid)

    async def _ask(self, worker_end: socket.socket) -> int:
        loop = asyncio.get_running_loop()
        socket.send_fds(self._control, [b"w"], [worker_end.fileno()])
        answer = b""
        while len(answer) < PID.size:
            data = await loop.sock_recv(self._control, PID.size - len(answer))
            if not data:
                return 0
            answer += data
        return int(PID.unpack(answer)[0])

    def close(self) -> None:
        """End it; the workers that it forked are not touched."""
        self._control.close()
        self._process.kill()
        self._process.wait()


def serves(model: ModelConfig) -> bool:
    """Whether its worker can be a fork: only one that leaves GPUs alone, of which a fork sees a broken state."""
    has_gpu = any(Path(name).exists() for name in DEVICE_FILES)
    return sys.platform == "linux" and (model.device == "cpu" or (model.device == "auto" and not has_gpu))


def _adopt_orphans() -> bool:
    """Become the parent of descendants whose own parent has ended. Whether that is possible here."""
    if sys.platform != "linux":
        return False
    status: int = ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return status == 0
