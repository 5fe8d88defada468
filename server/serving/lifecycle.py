"""Where the server is in its life, and how many requests it is answering."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Lifecycle:
    """Written by the process's start and stop; read by probes and handlers. Lives on the event loop."""

    def __init__(self) -> None:
        self.is_loaded = False
        """Every model has been ready once."""
        self.is_draining = False
        """A signal asked for the end: not ready, though new work may still be taken for a while."""
        self.num_active = 0
        """Requests for a model's work whose answers are not complete."""
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def active(self) -> Iterator[None]:
        """One request is being answered inside the block."""
        self.num_active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.num_active -= 1
            if self.num_active == 0:
                self._idle.set()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Whether no request was left within the time."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
