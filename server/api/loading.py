"""How long each model has been loading, for the person who watches the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping

from server.client.worker_client import WorkerClient
from server.status_line import StatusLine

DRAW_EVERY_S = 0.1
SPINNER = "|/-\\"


@contextlib.asynccontextmanager
async def shown(clients: Mapping[str, WorkerClient], status: StatusLine | None) -> AsyncGenerator[None, None]:
    """Meanwhile the line tells which models are there; it is gone afterwards. Without a terminal there is none."""
    if status is None:
        yield
        return
    drawing = asyncio.create_task(_draw(clients, status))
    try:
        yield
    finally:
        drawing.cancel()
        await asyncio.gather(drawing, return_exceptions=True)
        status.show("")


async def _draw(clients: Mapping[str, WorkerClient], status: StatusLine) -> None:
    started_s = time.monotonic()
    turn = 0
    while True:
        elapsed_s = time.monotonic() - started_s
        status.show(line({name: client.ready is not None for name, client in clients.items()}, elapsed_s, turn))
        turn += 1
        await asyncio.sleep(DRAW_EVERY_S)


def line(is_loaded: Mapping[str, bool], elapsed_s: float, turn: int) -> str:
    """
    >>> line({"chat": False, "mood": True}, 3.2, 0)
    '| loading 1 of 2  chat ...  mood ok  3 s'
    """
    states = "  ".join(f"{name} {'ok' if loaded else '...'}" for name, loaded in is_loaded.items())
    done = sum(is_loaded.values())
    return f"{SPINNER[turn % len(SPINNER)]} loading {done} of {len(is_loaded)}  {states}  {elapsed_s:.0f} s"
