"""Work on clients' texts. All but the shortest is kept off the event loop: short texts never wait behind long ones."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from server import allocator
from server.client.fair_places import FairPlaces

T = TypeVar("T")
R = TypeVar("R")

FEW_CHARACTERS = 2048
"""Up to so many, the work takes less time than a busy server needs to hand it to a thread and back."""
LONG_CHARACTERS = 64 * 1024
"""More than this in one request is a long text."""
NUM_LONG_THREADS = 2

_long_threads = ThreadPoolExecutor(NUM_LONG_THREADS, thread_name_prefix="long-texts")
_places = FairPlaces(NUM_LONG_THREADS, work="long texts", max_wait_s=60.0)


async def each(
    work: Callable[[T], R], inputs: Sequence[T], num_characters: int, *, num_option_characters: int = 0
) -> list[R]:
    """The work's results, one after the other; ``num_characters`` is the length of all texts.

    With few characters, those of the request's options included, the work is done at once. The rest is done in
    threads. Long texts have threads of their own, which callers share fairly. Cancellation stops the work before its
    next input.
    """
    if num_characters + num_option_characters <= FEW_CHARACTERS:
        return [work(input_) for input_ in inputs]
    if num_characters <= LONG_CHARACTERS:
        return await asyncio.to_thread(lambda: [work(input_) for input_ in inputs])
    async with _places.place():
        is_cancelled = threading.Event()
        results = asyncio.get_running_loop().run_in_executor(_long_threads, _each, work, inputs, is_cancelled)
        try:
            return await asyncio.shield(results)
        except asyncio.CancelledError:
            is_cancelled.set()
            # The place is given back when the thread is.
            await asyncio.wait([results])
            raise


class _Cancelled(Exception):
    """The caller has left."""


def _each(work: Callable[[T], R], inputs: Sequence[T], is_cancelled: threading.Event) -> list[R]:
    results = []
    try:
        for input_ in inputs:
            if is_cancelled.is_set():
                raise _Cancelled
            results.append(work(input_))
    except Exception as error:
        # The frames hold the tokens of a text that was refused.
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        # A long text takes a hundred times its length for a moment.
        allocator.trim()
    return results
