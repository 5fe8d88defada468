"""Several streams read as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def side_by_side(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """What each stream yields, as it comes, with the stream's number; the first failure ends them all.

    However it ends, all streams have been closed then.
    """
    reading = {asyncio.ensure_future(anext(stream, None)): number for number, stream in enumerate(streams)}
    try:
        while reading:
            done, _ = await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
            for future in sorted(done, key=reading.__getitem__):
                number = reading.pop(future)
                if (next_item := future.result()) is not None:
                    reading[asyncio.ensure_future(anext(streams[number], None))] = number
                    yield number, next_item
    finally:
        for future in reading:
            future.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
