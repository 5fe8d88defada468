"""In which order requests that arrive together begin."""

from __future__ import annotations

import asyncio
from collections import deque

from server import caller


class Turns:
    """Lets one request of each caller begin in each turn of the event loop.

    To begin takes a request a millisecond or more of the loop's time. Where one caller sends a hundred requests at
    once, another one's request waits for a few of them and not for all. Nothing waits while the loop has no other work.
    """

    def __init__(self) -> None:
        self._begun: set[str] = set()
        """Callers with a request that began in this turn."""
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """Of callers that have begun one."""

    async def take(self) -> None:
        """Return when a request of the current caller may begin; its own begin in order of arrival."""
        name = caller.current().id
        if name not in self._begun:
            self._begin(name)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(name, deque()).append(turn)
        await turn

    def _begin(self, name: str) -> None:
        if not self._begun:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._begun.add(name)

    def _next_turn(self) -> None:
        self._begun.clear()
        for name, waiting in list(self._waiting.items()):
            while waiting:
                turn = waiting.popleft()
                # A client may have left.
                if not turn.done():
                    turn.set_result(None)
                    self._begin(name)
                    break
            if not waiting:
                del self._waiting[name]
