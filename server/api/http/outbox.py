"""Parts of answers, written together: a step of a model wakes all its streams, and each has a little to send."""

from __future__ import annotations

import asyncio
from typing import Protocol

MAX_HELD_BYTES = 64 * 1024
"""Beyond this the outbox writes at once, so that a fast writer notices a client that does not keep up."""


class Writable(Protocol):
    """The part of a transport that is used."""

    def write(self, data: bytes) -> None: ...
    def is_closing(self) -> bool: ...


class Outbox:
    """Writes what was put into it once all tasks that are ready now have run.

    A system call leaves the processor's caches to the kernel. Between tasks it would cost them more than it takes.
    """

    def __init__(self) -> None:
        self._held: list[tuple[Writable, bytes]] = []
        self._num_bytes = 0

    def put(self, transport: Writable, data: bytes) -> None:
        """Write soon. What is put in for one transport is written in order."""
        if not self._held:
            asyncio.get_running_loop().call_soon(self.flush)
        self._held.append((transport, data))
        self._num_bytes += len(data)
        if self._num_bytes > MAX_HELD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write now: before anything is written past the outbox, and before a connection is closed."""
        held, self._held, self._num_bytes = self._held, [], 0
        for transport, data in held:
            if not transport.is_closing():
                transport.write(data)
