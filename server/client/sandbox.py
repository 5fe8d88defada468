"""The front's side of the sandbox: processes that may be killed, for what clients may make slow, large or fatal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, cast

from server import framing
from server.availability_errors import QueueFull
from server.client.environment import is_basic
from server.client.fair_places import FairPlaces
from server.errors import SandboxFailure, SandboxTimeout, ServerShutdown, SluiceError
from server.sandbox.messages import MAX_ANSWER_BYTES, Call, Refused, Reply, Returned, reply_decoder

SANDBOX_COMMAND = (sys.executable, "-B", "-m", "server.sandbox")
NUM_PROCESSES = 2
START_LIMIT_S = 30.0
"""For a process to start, on a machine that is busy with loading models."""
STARVED_FACTOR = 5
"""A call's time is processor time as long as the clock on the wall shows at most so many times as much."""
MAX_STARTS = 3
"""Deaths of processes that have not been asked anything yet, before a request is given up."""
LOW_PRIORITY = 10
"""Niceness of processes whose work must not slow the server's own."""
LEAST_WAIT_S = 0.05
REAP_LIMIT_S = 5.0
POLL_S = 0.005

log = logging.getLogger("sluice.sandbox")


class Sandbox:
    """Runs the functions of `server.sandbox.functions`, one call at a time in each of a few processes.

    A process starts with the first call that needs it. One that was slow, or whose caller has left, is killed.
    Callers share the processes fairly.
    """

    def __init__(
        self,
        *,
        num_processes: int = NUM_PROCESSES,
        command: Sequence[str] = SANDBOX_COMMAND,
        work: str = "templates",
        max_waiting: int = 64,
        niceness: int = 0,
    ) -> None:
        """``work`` names what its processes do, for messages; ``max_waiting`` limits each caller's waiting calls."""
        self._command = command
        self._niceness = niceness
        self._places = FairPlaces(num_processes, work=work, max_waiting=max_waiting)
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._killed: list[_Process] = []
        self._is_closed = False

    @property
    def pids(self) -> list[int]:
        """Of the processes that live."""
        return [process.pid for process in self._all]

    async def call(self, function: str, *arguments: Any, timeout_s: float = 2.0) -> Any:
        """The function's result. Raises SandboxFailure if it refuses, and SandboxTimeout after ``timeout_s``."""
        call = Call(function, list(arguments), timeout_s)
        async with self._places.place():
            reply = await self._answer(call)
        if isinstance(reply, Refused):
            raise SandboxFailure(reply.message)
        return cast(Returned, reply).value

    async def close(self) -> None:
        """End every process, whatever it does."""
        self._is_closed = True
        for process in list(self._all):
            self._end(process)
        deadline_s = time.monotonic() + REAP_LIMIT_S
        while self._killed and time.monotonic() < deadline_s:
            await asyncio.sleep(POLL_S)
            self._reap()

    async def _answer(self, call: Call) -> Reply:
        """What the function answers. A process that dies may have been killed for another's sake: it is tried twice."""
        for _ in range(2):
            process = await self._process()
            try:
                reply = await process.call(call)
            except _Died:
                self._end(process)
            except BaseException:
                self._end(process)
                raise
            else:
                self._idle.append(process)
                return reply
        raise SandboxFailure("It exceeds the memory or nesting limit.")

    async def _process(self) -> _Process:
        """One that takes a call now."""
        self._reap()
        while self._idle:
            process = self._idle.pop()
            if process.is_alive:
                return process
            self._end(process)
        if self._is_closed:
            raise ServerShutdown("The server is stopping.")
        for _ in range(MAX_STARTS):
            process = await _Process.start(self._command, self._niceness)
            self._all.add(process)
            try:
                await process.started()
            except _Died:
                self._end(process)
            except BaseException:
                self._end(process)
                raise
            else:
                return process
        raise SluiceError("The server could not start a process for this request.")

    def _end(self, process: _Process) -> None:
        process.kill()
        if process in self._all:
            self._all.discard(process)
            self._killed.append(process)

    def _reap(self) -> None:
        """Leave no zombies; and wait for none, for this is the event loop."""
        self._killed = [process for process in self._killed if not process.is_gone]


class _Died(Exception):
    """The process ended before it answered."""


class _Process(asyncio.Protocol):
    """One process and our end of its connection."""

    def __init__(self) -> None:
        self._decoder = reply_decoder()
        self._num_bytes = 0
        self._reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._popen: subprocess.Popen[bytes] | None = None

    @classmethod
    async def start(cls, command: Sequence[str], niceness: int) -> _Process:
        """Start the process; it dies with this thread, and with its connection."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                _, process = await asyncio.get_running_loop().create_unix_connection(cls, sock=ours)
            except BaseException:
                ours.close()
                raise
            try:
                process._popen = _spawn(command, theirs.fileno())
                _lower_priority(process.pid, niceness)
            except BaseException:
                process.kill()
                raise
        return process

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    @property
    def is_gone(self) -> bool:
        """Whether nothing is left of it, not even its exit code."""
        return self._popen is None or self._popen.poll() is not None

    @property
    def is_alive(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def started(self) -> None:
        """Return when it takes calls; raises _Died if it never will."""
        try:
            await asyncio.wait_for(self._reply, START_LIMIT_S)
        except TimeoutError:
            raise QueueFull("The server is too busy to start a process for this request.", retry_after_s=5.0) from None

    async def call(self, call: Call) -> Reply:
        """The answer; raises SandboxTimeout when its time is over, and _Died when the process is gone."""
        self._num_bytes = 0
        self._reply = asyncio.get_running_loop().create_future()
        if not self.is_alive or self._transport is None:
            raise _Died
        self._transport.write(framing.encode([call]))
        start_s, used_s = time.monotonic(), self._used_s()
        wait_s = call.limit_s
        while not (await asyncio.wait([self._reply], timeout=max(wait_s, LEAST_WAIT_S)))[0]:
            # On a busy machine it may have had little of the time that has passed: it is no slower for that.
            passed_s = time.monotonic() - start_s
            wait_s = min(call.limit_s - (self._used_s(passed_s) - used_s), STARVED_FACTOR * call.limit_s - passed_s)
            if wait_s <= 0:
                raise SandboxTimeout(call.limit_s)
        return self._reply.result()

    def _used_s(self, otherwise: float = 0.0) -> float:
        """Processor time of the process until now."""
        try:
            # Linux's clock of another process, as clock_getcpuclockid(3) makes it.
            return time.clock_gettime((~self.pid << 3) | 2)
        except OSError:
            return otherwise

    def kill(self) -> None:
        """End it at once; it is still to be waited for."""
        if self._transport is not None:
            self._transport.abort()
        if self._popen is not None:
            self._popen.kill()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._num_bytes += len(data)
        try:
            if self._num_bytes > MAX_ANSWER_BYTES:
                raise framing.FrameError("the answer is too long")
            replies = self._decoder.feed(data)
        except framing.FrameError as error:
            self._fail(error)
            return
        for reply in replies:
            if not self._reply.done():
                self._reply.set_result(reply)

    def _fail(self, error: Exception) -> None:
        log.warning("a sandbox process broke its protocol", extra={"fields": {"error": str(error)}})
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if not self._reply.done():
            self._reply.set_exception(_Died())
            # Looked at by whoever waits; a process that is killed has nobody who does.
            self._reply.exception()


def _spawn(command: Sequence[str], fd: int) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if is_basic(name)}
    return subprocess.Popen([*command, "--fd", str(fd)], pass_fds=[fd], stdin=subprocess.DEVNULL, env=environment)


def _lower_priority(pid: int, niceness: int) -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + niceness)
