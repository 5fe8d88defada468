"""Requests that arrive together begin in turns of their callers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from server import caller
from server.api.http.client_address import TrustedProxies
from server.api.http.middleware import RequestContext
from server.api.http.turns import Turns
from server.caller import Caller
from server.serving.lifecycle import Lifecycle

NUM_REQUESTS = 50


def run(coroutine: Coroutine[Any, Any, Any]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 30))


async def begin(turns: Turns, who: str, begun: list[str]) -> None:
    caller.set_current(Caller(who))
    await turns.take()
    begun.append(who)


def test_a_callers_request_begins_before_most_of_those_that_another_sent_before() -> None:
    async def main() -> None:
        turns, begun = Turns(), list[str]()
        names = ["flood"] * NUM_REQUESTS + ["other"]
        await asyncio.gather(*(begin(turns, name, begun) for name in names))
        assert begun.index("other") <= 2
        assert sorted(begun) == names

    run(main())


def test_a_request_that_is_alone_begins_at_once() -> None:
    async def main() -> None:
        turns = Turns()
        for _ in range(3):
            caller.set_current(Caller("alone"))
            coroutine = turns.take()
            try:
                coroutine.send(None)
            except StopIteration:
                await asyncio.sleep(0)
            else:
                raise AssertionError("it waits")

    run(main())


def test_requests_that_are_given_up_while_they_wait_hold_up_no_other() -> None:
    async def main() -> None:
        turns, begun = Turns(), list[str]()
        tasks = [asyncio.create_task(begin(turns, "one", begun)) for _ in range(NUM_REQUESTS)]
        await asyncio.sleep(0)
        for task in tasks[1:-1]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert begun == ["one", "one"]
        await begin(turns, "one", begun)
        assert turns._waiting == {}

    run(main())


def test_each_request_to_the_server_takes_a_turn_of_its_address() -> None:
    begun: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.append(scope["client"][0])

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    async def main() -> None:
        context = RequestContext(
            app, lifecycle=Lifecycle(), task_routes={}, dialects={}, quiet_routes=(), proxies=TrustedProxies([])
        )
        addresses = ["10.0.0.1"] * NUM_REQUESTS + ["10.0.0.2"]
        scopes = [
            {"type": "http", "method": "POST", "path": "/generate", "headers": [], "client": (address, 1)}
            for address in addresses
        ]
        await asyncio.gather(*(asyncio.create_task(context(scope, receive, send)) for scope in scopes))
        assert begun.index("10.0.0.2") <= 2
        assert sorted(begun) == addresses

    run(main())
