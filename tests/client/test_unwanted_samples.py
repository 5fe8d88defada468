"""The worker is told which samples their consumer has seen the end of."""

from __future__ import annotations

import asyncio

from server.client.worker_client import WorkerClient
from server.config import ModelConfig
from server.protocol import Abort, Command, Generate, SamplingParams, Tokens
from tests.api.scripted import ready


class Recorder:
    """Stands for a connection that is always writable."""

    is_writable = True

    def __init__(self) -> None:
        self.commands: list[Command] = []

    def send(self, commands: list[Command]) -> None:
        assert commands, "an empty frame"
        self.commands += commands


async def scenario() -> tuple[list[Command], list[list[Tokens]]]:
    client = WorkerClient(ModelConfig(name="m", path="unused"))
    recorder = Recorder()
    client.attach(recorder)  # type: ignore[arg-type]
    client.on_replies([ready()])
    ended: list[int] = []
    params = SamplingParams(max_new_tokens=9, num_return_sequences=3)
    stream = client.stream(Generate("r", [1], params), unwanted=lambda: ended)
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    wire_id = recorder.commands[0].request_id  # type: ignore[union-attr]
    client.on_replies([Tokens(wire_id, [5], index=index) for index in range(3)])
    taken = [await first]
    ended.append(1)
    for _ in range(2):
        client.on_replies([Tokens(wire_id, [6], index=index) for index in range(3)])
        taken.append(await anext(stream))
    client.on_replies([Tokens(wire_id, [7], "length", index=index) for index in (0, 2)])
    taken.append(await anext(stream))
    assert [tokens async for tokens in stream] == []
    assert client.num_running == 0
    return recorder.commands[1:], taken


def test_a_sample_whose_end_was_seen_is_aborted_once_and_brings_no_more_news() -> None:
    commands, taken = asyncio.run(scenario())
    assert [(type(command), command.index) for command in commands if isinstance(command, Abort)] == [(Abort, 1)]
    assert [[tokens.index for tokens in step] for step in taken] == [[0, 1, 2], [0, 2], [0, 2], [0, 2]]
