"""``Idempotency-Key``: clients that leave, wait or fail at awkward moments, and callers that fill the table."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import ASGIApp, Message

from server import caller
from server.api.http import idempotency, shared_work
from server.api.http.idempotency import Idempotency
from server.caller import Caller
from server.errors import SluiceError
from server.protocol import Generate, Tokens
from server.serving.record import RequestRecord
from tests.api.scripted import MILL, Step, front
from tests.api.shell import client_of

START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
END: Message = {"type": "http.response.body", "body": b"", "more_body": False}


def event(data: bytes) -> Message:
    return {"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True}


@dataclass
class Client:
    """One request with a key, straight to the gate."""

    key: str = "k"
    body: bytes = b"{}"
    may_send: asyncio.Event = field(default_factory=asyncio.Event)
    has_left: asyncio.Event = field(default_factory=asyncio.Event)
    has_answer: asyncio.Event = field(default_factory=asyncio.Event)
    got: list[Message] = field(default_factory=list)

    async def ask(self, gate: ASGIApp) -> None:
        record = RequestRecord(request_id="r", public_id="r", route="/generate")
        scope = {
            "type": "http", "method": "POST", "path": "/generate", "query_string": b"", "state": {"record": record},
            "headers": [(b"idempotency-key", self.key.encode())],
        }  # fmt: skip
        bodies = [self.body]

        async def receive() -> Message:
            if bodies:
                return {"type": "http.request", "body": bodies.pop(), "more_body": False}
            await self.has_left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            self.got.append(message)
            self.has_answer.set()
            await self.may_send.wait()

        await gate(scope, receive, send)


def free_client(key: str = "k") -> Client:
    client = Client(key)
    client.may_send.set()
    return client


async def answers(_: Any, __: Any, send: Any) -> None:
    for message in (START, event(b"1"), END):
        await send(message)


def is_replayed(client: Client) -> bool:
    return (b"idempotency-replayed", b"true") in client.got[0]["headers"]


def test_a_stream_that_failed_is_tried_again() -> None:
    def fails(command: Generate) -> Iterator[Step]:
        yield Tokens(command.request_id, [MILL])
        yield SluiceError("It broke.")

    app = front(fails)
    for _ in range(2):
        reply = client_of(app).post("/generate", json={"inputs": "a", "stream": True}, headers={"Idempotency-Key": "k"})
        assert reply.status_code == 200
        assert "It broke." in reply.text
        assert "idempotency-replayed" not in reply.headers
    assert len(app.state.worker.commands) == 2


def test_a_run_that_fails_while_a_client_takes_its_last_message_ends_for_the_client() -> None:
    may_fail = asyncio.Event()

    async def fails(_: Any, __: Any, send: Any) -> None:
        await send(START)
        await may_fail.wait()
        raise RuntimeError("boom")

    async def main() -> None:
        client = Client()
        asking = asyncio.create_task(client.ask(Idempotency(fails, paths={"/generate"})))
        await client.has_answer.wait()
        may_fail.set()
        await asyncio.sleep(0.01)
        client.may_send.set()
        with pytest.raises(RuntimeError, match="boom"):
            await asyncio.wait_for(asking, 5)

    asyncio.run(main())


def test_work_that_is_being_ended_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_work, "ALONE_S", 0.0)
    cut, may_end, num_runs = asyncio.Event(), asyncio.Event(), 0

    async def app(_: Any, receive: Any, send: Any) -> None:
        nonlocal num_runs
        num_runs += 1
        if num_runs > 1:
            await answers(None, None, send)
            return
        await send(START)
        await receive()
        await receive()
        cut.set()
        await may_end.wait()

    async def main() -> None:
        gate = Idempotency(app, paths={"/generate"})
        first, second = free_client(), free_client()
        asking = asyncio.create_task(first.ask(gate))
        await first.has_answer.wait()
        first.has_left.set()
        await asking
        await cut.wait()
        asking = asyncio.create_task(second.ask(gate))
        await second.has_answer.wait()
        may_end.set()
        await asyncio.wait_for(asking, 5)
        assert second.got[-1] == END
        assert not is_replayed(second)

    asyncio.run(main())


def test_a_flood_of_one_caller_leaves_anothers_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "MAX_ENTRIES", 8)

    async def main() -> None:
        gate = Idempotency(answers, paths={"/generate"})
        caller.set_current(Caller("quiet"))
        await free_client().ask(gate)
        caller.set_current(Caller("flood"))
        for i in range(20):
            await free_client(f"{i}").ask(gate)
        caller.set_current(Caller("quiet"))
        again = free_client()
        await again.ask(gate)
        assert is_replayed(again)

    asyncio.run(main())


def test_many_short_events_count_with_what_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_work, "MAX_ANSWER_BYTES", 20_000)

    async def talks(_: Any, __: Any, send: Any) -> None:
        for message in (START, *(event(b"1") for _ in range(100)), END):
            await send(message)

    async def main() -> None:
        gate = Idempotency(talks, paths={"/generate"})
        await free_client().ask(gate)
        [work] = gate._works.values()
        assert not work.is_kept

    asyncio.run(main())
