"""What is put into an outbox is written together, in order, and never to a connection that closes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from server.api.http.outbox import MAX_HELD_BYTES, Outbox


class Wire:
    """A transport that remembers what was written."""

    def __init__(self, *, is_closing: bool = False) -> None:
        self.written: list[bytes] = []
        self._is_closing = is_closing

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return self._is_closing


def run(test: Callable[[Outbox], Awaitable[None]]) -> None:
    async def with_outbox() -> None:
        await test(Outbox())

    asyncio.run(with_outbox())


def test_writes_nothing_before_all_ready_tasks_have_run() -> None:
    async def test(outbox: Outbox) -> None:
        first, second = Wire(), Wire()
        seen: list[int] = []

        async def say(wire: Wire) -> None:
            outbox.put(wire, b"a")
            seen.append(len(first.written) + len(second.written))

        await asyncio.gather(say(first), say(second))
        assert seen == [0, 0]
        assert first.written == second.written == [b"a"]

    run(test)


def test_writes_the_parts_of_a_connection_in_order() -> None:
    async def test(outbox: Outbox) -> None:
        wire = Wire()
        for data in (b"a", b"b", b"c"):
            outbox.put(wire, data)
        outbox.flush()
        outbox.put(wire, b"d")
        await asyncio.sleep(0)
        assert wire.written == [b"a", b"b", b"c", b"d"]

    run(test)


def test_writes_at_once_when_much_is_held() -> None:
    async def test(outbox: Outbox) -> None:
        wire = Wire()
        outbox.put(wire, b"a" * MAX_HELD_BYTES)
        assert not wire.written
        outbox.put(wire, b"b")
        assert len(wire.written) == 2

    run(test)


def test_writes_nothing_to_a_connection_that_closes() -> None:
    async def test(outbox: Outbox) -> None:
        closing, other = Wire(is_closing=True), Wire()
        outbox.put(closing, b"a")
        outbox.put(other, b"b")
        await asyncio.sleep(0)
        assert not closing.written and other.written == [b"b"]

    run(test)
