"""Memory for large bodies that are arriving: bounded in all and for each caller, whatever the number of connections."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server import caller

TOTAL_BYTES = 32 * 1024 * 1024
CALLER_BYTES = 8 * 1024 * 1024


class BodyRoom:
    """A body that finds no room waits, and its client with it. Its deadline goes on.

    Room is taken for a whole body at once: bodies that hold a part each could wait for one another for ever.
    """

    def __init__(self, max_body_bytes: int) -> None:
        self._total = max(TOTAL_BYTES, max_body_bytes)
        self._for_each = max(CALLER_BYTES, max_body_bytes)
        self._used: Counter[str] = Counter()
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def place(self, num_bytes: int) -> AsyncIterator[None]:
        """Hold room for a body of this size."""
        name = caller.current().id

        def fits() -> bool:
            return self._used.total() + num_bytes <= self._total and self._used[name] + num_bytes <= self._for_each

        async with self._freed:
            await self._freed.wait_for(fits)
            self._used[name] += num_bytes
        try:
            yield
        finally:
            self._used[name] -= num_bytes
            if not self._used[name]:
                del self._used[name]
            async with self._freed:
                self._freed.notify_all()
