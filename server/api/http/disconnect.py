"""Work that ends when its client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

T = TypeVar("T")


async def until_disconnect(request: Request, awaitable: Awaitable[T]) -> T:
    """The awaitable's result; if the client leaves first, it is cancelled and `ClientDisconnect` raised.

    The body must have been read: until then the client's messages are not only its leaving.
    """
    work = asyncio.ensure_future(awaitable)
    leaving = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect()
        return work.result()
    finally:
        for future in (work, leaving):
            future.cancel()
        # The work's own cleaning up (its abort, its permit) is over before the handler is.
        await asyncio.gather(work, leaving, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
