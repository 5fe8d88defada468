"""What the front remembers of the grammars that it has checked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.errors import SandboxTimeout, UnsupportedGrammar
from server.serving.structured import VERDICT_BYTES, Grammars, grammar_text


class CountingSandbox:
    def __init__(self, answer: Any = None) -> None:
        self.num_calls = 0
        self.answer = answer

    async def call(self, function: str, *arguments: Any, timeout_s: float = 2.0) -> Any:
        assert (function, timeout_s) == ("check_grammar", 2.0)
        self.num_calls += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def choice(i: int) -> dict[str, Any]:
    return {"type": "choice", "value": [f"choice {i}"]}


def test_a_grammar_is_checked_once_whatever_comes_of_it() -> None:
    async def check() -> None:
        good, bad = CountingSandbox(), CountingSandbox("It has no end.")
        grammars = Grammars(good)
        assert await grammars.text(choice(1)) == await grammars.text(choice(1)) == grammar_text(choice(1))
        assert good.num_calls == 1
        grammars = Grammars(bad)
        for _ in range(2):
            with pytest.raises(UnsupportedGrammar, match="It has no end"):
                await grammars.text(choice(1))
        assert bad.num_calls == 1

    asyncio.run(check())


def test_a_grammar_that_takes_too_long_is_refused_at_once_the_next_time() -> None:
    async def check() -> None:
        sandbox = CountingSandbox(SandboxTimeout(2.0))
        grammars = Grammars(sandbox)
        for _ in range(2):
            with pytest.raises(UnsupportedGrammar, match="longer than 2 s"):
                await grammars.text(choice(1))
        assert sandbox.num_calls == 1

    asyncio.run(check())


def test_memory_of_what_was_checked_stays_within_its_bytes() -> None:
    async def check() -> None:
        sandbox = CountingSandbox("x" * 100)
        limit = 50 * (VERDICT_BYTES + 100)
        grammars = Grammars(sandbox, max_cache_bytes=limit)
        for i in range(10_000):
            with pytest.raises(UnsupportedGrammar):
                await grammars.text(choice(i))
            assert grammars.num_cached_bytes <= limit
        for i in range(9_950, 10_000):
            with pytest.raises(UnsupportedGrammar):
                await grammars.text(choice(i))
        assert sandbox.num_calls == 10_000

    asyncio.run(check())


def test_equal_grammars_that_come_together_are_checked_once() -> None:
    async def check() -> None:
        sandbox = CountingSandbox()
        grammars = Grammars(sandbox)
        await asyncio.gather(*[grammars.text(choice(1)) for _ in range(50)])
        assert sandbox.num_calls == 1

    asyncio.run(check())
