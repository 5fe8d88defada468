"""Several streams read as one lose nothing, fail together and leave nothing open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from server.serving.side_by_side import side_by_side


class Source:
    """Yields numbers, each after a pause; knows whether it was closed."""

    def __init__(self, *items: float | Exception) -> None:
        self.items = items
        self.is_closed = False

    async def __call__(self) -> AsyncGenerator[float, None]:
        try:
            for item in self.items:
                if isinstance(item, Exception):
                    raise item
                await asyncio.sleep(item)
                yield item
        finally:
            self.is_closed = True


def read(*sources: Source, at_most: int = 100) -> list[tuple[int, float]]:
    async def run() -> list[tuple[int, float]]:
        found: list[tuple[int, float]] = []
        async with aclosing(side_by_side([source() for source in sources])) as items:
            async for item in items:
                found.append(item)
                if len(found) == at_most:
                    break
        return found

    return asyncio.run(run())


@pytest.mark.parametrize("count", [1, 3])
def test_every_item_comes_once_in_its_streams_order(count: int) -> None:
    sources = [Source(*(i / 1000 for i in range(5))) for _ in range(count)]
    found = read(*sources)
    for number in range(count):
        assert [item for i, item in found if i == number] == [i / 1000 for i in range(5)]
    assert all(source.is_closed for source in sources)


def test_a_slow_stream_holds_no_other_up() -> None:
    assert read(Source(0.2), Source(0.0, 0.01, 0.01))[-1] == (0, 0.2)


@pytest.mark.parametrize("count", [0, 2])
def test_a_failure_is_raised_and_closes_the_others(count: int) -> None:
    others = [Source(0.001, 60.0) for _ in range(count)]
    with pytest.raises(KeyError):
        read(*others, Source(0.01, KeyError("a")))
    assert all(source.is_closed for source in others)


@pytest.mark.parametrize("count", [1, 3])
def test_a_reader_that_leaves_closes_all(count: int) -> None:
    sources = [Source(0.0, 60.0) for _ in range(count)]
    read(*sources, at_most=1)
    assert all(source.is_closed for source in sources)
