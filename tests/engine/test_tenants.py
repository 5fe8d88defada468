"""Tenants share no cached block, and each keeps its share of them."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from server.engine.cached_blocks import ACTIVE_S, CachedBlocks
from server.engine.engine import DecoderEngine
from tests.engine.driving import generate, make_engine, run
from tests.engine.fake_runner import FakeRunner

PROMPT = list(range(1, 26))


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


def num_cached(engine: DecoderEngine, tenant: str, prompt: list[int] = PROMPT, salt: str = "") -> int | None:
    command = msgspec.structs.replace(generate("r", prompt, max_new_tokens=2), tenant=tenant, cache_salt=salt)
    return run(engine, [command])["r"].num_cached_tokens


def test_a_tenant_finds_its_own_blocks_and_no_others() -> None:
    engine = make_engine()
    assert num_cached(engine, "a") == 0
    assert num_cached(engine, "b") == 0
    assert num_cached(engine, "a") == num_cached(engine, "b") == 24
    assert num_cached(engine, "a", salt="x") == 0


def test_a_tenant_and_a_salt_of_one_spelling_differ() -> None:
    engine = make_engine()
    num_cached(engine, "x")
    assert num_cached(engine, "", salt="x") == 0


def test_two_processes_hash_alike_tokens_differently() -> None:
    hashes = []
    for _ in range(2):
        engine = make_engine()
        num_cached(engine, "a")
        hashes.append(set(engine.blocks._by_hash))
    assert hashes[0].isdisjoint(hashes[1])


def test_a_flood_of_one_tenant_leaves_another_its_share() -> None:
    engine = make_engine(FakeRunner(num_blocks=32))
    num_cached(engine, "quiet")
    for i in range(20):
        num_cached(engine, "flood", [i % 50, *range(1, 25)])
    assert num_cached(engine, "quiet") == 24


def test_the_largest_holder_loses_its_oldest_block_first() -> None:
    cached = CachedBlocks(Clock())
    for tenant in "ab":
        cached.touch(tenant)
    for block in (5, 1, 2, 3):
        cached.add(block, "a")
    cached.add(9, "b")
    assert [cached.pop() for _ in range(3)] == [5, 1, 2]


def test_a_tenant_that_left_keeps_nothing_from_others() -> None:
    clock = Clock()
    cached = CachedBlocks(clock)
    cached.touch("gone")
    cached.add(1, "gone")
    cached.add(2, "gone")
    clock.now_s += ACTIVE_S + 1
    cached.touch("here")
    for block in range(3, 9):
        cached.add(block, "here")
    assert [cached.pop() for _ in range(3)] == [1, 2, 3]


def test_one_tenant_alone_may_have_all() -> None:
    cached = CachedBlocks(Clock())
    for block in range(100):
        cached.add(block, "a")
    assert len(cached) == 100
    cached.remove(0)
    cached.remove(0)
    assert [cached.pop(), len(cached)] == [1, 98]
