"""A few places for slow work, shared fairly between callers."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from server import caller
from server.availability_errors import QueueFull, RateLimited


@dataclass
class _Share:
    """What one caller has and wants; kept while it has or wants anything."""

    used_s: float
    num_held: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class FairPlaces:
    """Gives a free place to the waiting caller that has used the least time so far.

    A caller's own work runs in order of arrival. With two places or more, one client never holds all of them.
    """

    def __init__(self, num_places: int, *, work: str, max_waiting: int = 64, max_wait_s: float = 15.0) -> None:
        """``work`` names what waits, for messages; ``max_waiting`` is each caller's own limit."""
        self._num_free = num_places
        self._max_held = max(1, num_places - 1)
        self._work = work
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._shares: dict[str, _Share] = {}

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place for the current caller. Raises RateLimited or QueueFull if it cannot have one."""
        name = caller.current().id
        share = self._share(name)
        try:
            await self._wait(share)
        except BaseException:
            self._tidy(name)
            raise
        start_s = time.monotonic()
        try:
            yield
        finally:
            share.used_s += time.monotonic() - start_s
            self._give_back(share)
            self._tidy(name)

    def _share(self, name: str) -> _Share:
        if name not in self._shares:
            # A newcomer does not come before all others for the time in which it asked for nothing.
            used_s = min((share.used_s for share in self._shares.values()), default=0.0)
            self._shares[name] = _Share(used_s)
        return self._shares[name]

    async def _wait(self, share: _Share) -> None:
        if len(share.waiting) >= self._max_waiting:
            message = (
                f"{len(share.waiting)} of your requests are waiting for {self._work}, which is the limit per client."
            )
            raise RateLimited(f"{message} Try again later.", retry_after_s=self._max_wait_s)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        share.waiting.append(turn)
        self._hand_out()
        try:
            async with asyncio.timeout(self._max_wait_s):
                await turn
        except BaseException as error:
            if turn in share.waiting:
                share.waiting.remove(turn)
            elif not turn.cancelled():
                self._give_back(share)
            if not isinstance(error, TimeoutError):
                raise
            message = f"The server is too busy with {self._work} of other requests. Try again later."
            raise QueueFull(message, retry_after_s=self._max_wait_s) from None

    def _hand_out(self) -> None:
        while self._num_free and (share := self._next()) is not None:
            turn = share.waiting.popleft()
            # One that was cancelled just now has not left the queue yet.
            if not turn.cancelled():
                self._num_free -= 1
                share.num_held += 1
                turn.set_result(None)

    def _give_back(self, share: _Share) -> None:
        share.num_held -= 1
        self._num_free += 1
        self._hand_out()

    def _next(self) -> _Share | None:
        able = [
            share
            for name, share in self._shares.items()
            if share.waiting and (share.num_held < self._max_held or name == caller.NOBODY.id)
        ]
        return min(able, key=lambda share: (share.num_held, share.used_s), default=None)

    def _tidy(self, name: str) -> None:
        share = self._shares.get(name)
        if share is not None and not share.num_held and not share.waiting:
            del self._shares[name]
