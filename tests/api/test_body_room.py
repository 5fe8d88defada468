"""Large bodies that arrive at the same time take turns; a caller never takes all the room."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from server import caller
from server.api.http.body_room import CALLER_BYTES, TOTAL_BYTES, BodyRoom
from server.caller import Caller

MIB = 2**20


async def place(room: BodyRoom, address: str, num_bytes: int, release: asyncio.Event, held: list[str]) -> None:
    caller.set_current(Caller.of_address(address))
    async with room.place(num_bytes):
        held.append(address)
        await release.wait()


def test_a_caller_waits_for_its_own_bodies_while_others_go_on():
    async def main() -> None:
        room, release, held = BodyRoom(2 * MIB), asyncio.Event(), list[str]()
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(place(room, "1.1.1.1", 2 * MIB, release, held))
            await asyncio.sleep(0.01)
            assert held == ["1.1.1.1"] * (CALLER_BYTES // (2 * MIB))
            group.create_task(place(room, "2.2.2.2", 2 * MIB, release, held))
            await asyncio.sleep(0.01)
            assert held[-1] == "2.2.2.2"
            release.set()
        assert held.count("1.1.1.1") == 20

    asyncio.run(asyncio.wait_for(main(), 30))


def test_all_callers_together_hold_no_more_than_the_room():
    async def main() -> None:
        room, release, held = BodyRoom(2 * MIB), asyncio.Event(), list[str]()
        async with asyncio.TaskGroup() as group:
            for number in range(40):
                group.create_task(place(room, f"1.1.1.{number}", 2 * MIB, release, held))
            await asyncio.sleep(0.01)
            assert len(held) == TOTAL_BYTES // (2 * MIB)
            release.set()
        assert len(held) == 40
        assert room._used.total() == 0

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_body_of_the_greatest_size_always_fits():
    async def main() -> None:
        room = BodyRoom(100 * MIB)
        async with AsyncExitStack() as stack:
            await asyncio.wait_for(stack.enter_async_context(room.place(100 * MIB)), 5)

    asyncio.run(main())
