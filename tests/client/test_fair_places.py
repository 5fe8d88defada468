"""Places for slow work are shared fairly between callers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from server import caller
from server.availability_errors import QueueFull, RateLimited
from server.caller import Caller
from server.client.fair_places import FairPlaces


class Work:
    """Tasks that hold a place until they are let go; ``order`` names them as they begin."""

    def __init__(self, places: FairPlaces) -> None:
        self.places = places
        self.order: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, who: str, name: str) -> None:
        caller.set_current(Caller(who))
        self.ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._run(name))
        await settle()

    async def end(self, name: str) -> None:
        self.ends[name].set()
        await self.tasks[name]
        await settle()

    async def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    async def _run(self, name: str) -> None:
        async with self.places.place():
            self.order.append(name)
            await self.ends[name].wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


def test_one_caller_never_holds_the_last_place() -> None:
    async def main() -> None:
        work = Work(FairPlaces(2, work="grammars"))
        for i in range(24):
            await work.start("flood", f"flood {i}")
        assert work.order == ["flood 0"]
        await work.start("other", "other")
        assert work.order == ["flood 0", "other"]
        await work.close()

    run(main())


def test_a_free_place_goes_to_the_caller_that_had_least() -> None:
    async def main() -> None:
        work = Work(FairPlaces(1, work="grammars"))
        for i in range(3):
            await work.start("flood", f"flood {i}")
        await work.start("other", "other 0")
        await work.start("other", "other 1")
        await asyncio.sleep(0.01)
        await work.end("flood 0")
        await asyncio.sleep(0.001)
        await work.end("other 0")
        await work.end("other 1")
        assert work.order == ["flood 0", "other 0", "other 1", "flood 1"]
        await work.close()

    run(main())


def test_the_callers_own_limit_refuses_it_and_nobody_else() -> None:
    async def main() -> None:
        places = FairPlaces(1, work="grammars", max_waiting=2)
        work = Work(places)
        for i in range(3):
            await work.start("flood", f"flood {i}")
        with pytest.raises(RateLimited) as refused:
            async with places.place():
                pass
        assert refused.value.retry_after_s is not None
        await work.start("other", "other")
        assert not work.tasks["other"].done()
        await work.close()

    run(main())


def test_a_caller_that_waits_too_long_is_refused_and_its_place_is_not_lost() -> None:
    async def main() -> None:
        places = FairPlaces(1, work="grammars", max_wait_s=0.01)
        work = Work(places)
        await work.start("a", "first")
        with pytest.raises(QueueFull):
            async with places.place():
                pass
        await work.end("first")
        async with places.place():
            pass

    run(main())


def test_places_of_cancelled_work_come_back() -> None:
    async def main() -> None:
        places = FairPlaces(2, work="grammars")
        for _ in range(50):
            work = Work(places)
            for i in range(6):
                await work.start(f"caller {i % 3}", f"work {i}")
            await work.close()
        assert not places._shares
        async with asyncio.timeout(1), places.place():
            pass

    run(main())


def test_work_that_is_cancelled_while_a_place_becomes_free_loses_none() -> None:
    async def main() -> None:
        places = FairPlaces(1, work="grammars")
        work = Work(places)
        await work.start("a", "first")
        await work.start("a", "second")
        await work.start("a", "third")
        work.tasks["second"].cancel()
        work.ends["first"].set()
        await settle()
        assert work.order == ["first", "third"]
        await work.close()
        assert not places._shares

    run(main())
