"""What the three encoder routes have in common: note the request, run until done or the client leaves, reply."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response

from server.api.disconnect import until_disconnect
from server.api.parameter_paths import parameter_paths
from server.api.schemas import StrictModel
from server.serving.encoder_client import ServedEncoder
from server.serving.record import RequestRecord

R = TypeVar("R")


async def run(
    request: Request,
    served: ServedEncoder,
    inputs: Sequence[Any],
    parameters: StrictModel,
    work: Callable[[RequestRecord], Awaitable[R]],
) -> R:
    """The work's result."""
    record: RequestRecord = request.state.record
    record.model, record.num_inputs = served.name, len(inputs)
    with parameter_paths(type(parameters)):
        return await until_disconnect(request, work(record))


def reply(value: Any) -> Response:
    """A JSON answer. FastAPI's own would check each of its numbers again."""
    return Response(msgspec.json.encode(value), media_type="application/json")


async def reply_to_texts(inputs: str | list[str], results: Sequence[R], render: Callable[[R], Any]) -> Response:
    """What one text got, or a list of that for a list of texts.

    Rendered in a thread: an answer may hold a hundred thousand entities, or tens of thousands of candidates with texts.
    """

    def rendered() -> Response:
        replies = [render(result) for result in results]
        return reply(replies[0] if isinstance(inputs, str) else replies)

    return await asyncio.to_thread(rendered)
