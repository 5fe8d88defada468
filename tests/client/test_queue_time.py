"""When a request leaves the queue is told once, even if it ends in the same step."""

from __future__ import annotations

import asyncio

import pytest

from server.client.worker_client import WorkerClient
from server.config import ModelConfig
from server.protocol import Generate, SamplingParams, Stats, Tokens
from tests.api.scripted import ready


class Wire:
    is_writable = True

    def __init__(self) -> None:
        self.sent: list[object] = []

    def send(self, messages: list[object]) -> None:
        self.sent += messages


@pytest.mark.parametrize("num_tokens", [1, 2])
def test_a_request_is_told_once_that_its_work_began(num_tokens: int) -> None:
    async def run() -> list[str]:
        happened: list[str] = []
        client, wire = WorkerClient(ModelConfig(name="tiny", path="nowhere")), Wire()
        client.attach(wire)  # type: ignore[arg-type]
        client.on_replies([ready()])

        async def consume() -> None:
            command = Generate("a", [1, 2], SamplingParams(max_new_tokens=num_tokens))
            async for _ in client.stream(command, on_start=lambda: happened.append("start")):
                happened.append("token")

        consumer = asyncio.ensure_future(consume())
        await asyncio.sleep(0)
        (command,) = wire.sent
        for i in range(num_tokens):
            last = "length" if i == num_tokens - 1 else None
            client.on_replies([Tokens(command.request_id, [5], last), Stats(started=[command.request_id])])  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        await consumer
        return happened

    assert asyncio.run(run()) == ["start"] + ["token"] * num_tokens
