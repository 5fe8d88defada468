"""Requests whose time is over while no worker computes them end without waiting for the next one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from server.client.worker_client import WorkerClient
from server.config import ModelConfig
from server.errors import DeadlineExceeded
from server.protocol import Generate, Reply, SamplingParams, Tokens
from tests.api.scripted import ready


class Wire:
    is_writable = True

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, messages: list[Any]) -> None:
        self.sent += messages


def told(happens: Callable[[WorkerClient, Wire], None], *, left_s: float, **params: Any) -> list[Tokens]:
    """All that the client of a request gets to which this happens once a worker has it."""

    async def run() -> list[Tokens]:
        client, wire = WorkerClient(ModelConfig(name="tiny", path="nowhere")), Wire()
        client.attach(wire)  # type: ignore[arg-type]
        client.on_replies([ready()])
        command = Generate(
            "a", [1, 2], SamplingParams(max_new_tokens=9, **params), deadline_s=time.monotonic() + left_s
        )
        messages: list[Tokens] = []

        async def consume() -> None:
            async for news in client.stream(command):
                messages.extend(news)

        consumer = asyncio.ensure_future(consume())
        await asyncio.sleep(0)
        happens(client, wire)
        await asyncio.wait_for(consumer, 10)
        return messages

    return asyncio.run(run())


def says(client: WorkerClient, wire: Wire, *indices: int) -> None:
    replies: list[Reply] = [Tokens(wire.sent[0].request_id, [5], index=index) for index in indices]
    client.on_replies(replies)


def test_an_output_that_lost_its_worker_ends_with_what_it_has() -> None:
    def loses_its_worker(client: WorkerClient, wire: Wire) -> None:
        says(client, wire, 0)
        client.detach()

    messages = told(loses_its_worker, left_s=0.05)
    assert [id_ for message in messages for id_ in message.token_ids] == [5]
    assert messages[-1].finish_reason == "max_time"


def test_every_sample_ends() -> None:
    def loses_its_worker(client: WorkerClient, wire: Wire) -> None:
        says(client, wire, 0, 1)
        client.detach()

    messages = told(loses_its_worker, left_s=0.05, num_return_sequences=2, do_sample=True, seed=1)
    assert {message.index for message in messages if message.finish_reason == "max_time"} == {0, 1}


def test_a_request_without_a_token_fails() -> None:
    with pytest.raises(DeadlineExceeded):
        told(lambda client, _: client.detach() and None, left_s=0.05)


def test_a_request_whose_worker_dies_after_its_time_waits_for_no_other() -> None:
    def dies_too_late(client: WorkerClient, wire: Wire) -> None:
        says(client, wire, 0)
        asyncio.get_running_loop().call_later(0.1, client.detach)

    messages = told(dies_too_late, left_s=0.01)
    assert messages[-1].finish_reason == "max_time"
