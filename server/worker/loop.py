"""The worker's loop: read what has arrived, make one step, answer in one frame.

Knows neither models nor tensors: an engine is five members.
"""

from __future__ import annotations

from typing import Protocol

from server.protocol import Abort, Encode, Generate, Load, LoadAdapter, Ping, Pong, Reply, UnloadAdapter
from server.worker.connection import Connection


class Engine(Protocol):
    """What the loop drives; the decoder's and the encoder's engine are two."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""

    def add(self, command: Generate | Encode) -> None:
        """Take a request. One that cannot be served is answered `Failed` by the next step; nothing is raised."""

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Forget a request, or one of its samples, and free what it holds. An unknown one is no error."""

    def change_adapters(self, command: LoadAdapter | UnloadAdapter) -> None:
        """Requests may name another adapter, or one less. What comes of it is answered by later steps."""

    def step(self) -> list[Reply]:
        """Compute once and return what it yielded; the last reply is `Stats`.

        An exception means that the engine's state cannot be trusted any more.
        """


def run(engine: Engine, connection: Connection) -> None:
    """Serve until the front closes the connection.

    An exception from ``step`` is not caught: the KV cache can no longer be
    trusted, so the process ends and the supervisor starts another.
    """
    while (commands := connection.receive(wait=not engine.has_work)) is not None:
        replies: list[Reply] = []
        for command in commands:
            match command:
                case Generate() | Encode():
                    engine.add(command)
                case Abort():
                    engine.abort(command.request_id, command.index)
                case LoadAdapter() | UnloadAdapter():
                    engine.change_adapters(command)
                case Ping():
                    replies.append(Pong())
                case Load():
                    raise ValueError("a worker holds one model for its whole life")
        # Also without work left: the front learns from the step's `Stats` that an abort freed its blocks.
        connection.send(replies + engine.step())
