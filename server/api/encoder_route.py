"""What the three encoder routes have in common: find the model, run until done or the client leaves, note it, reply."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response

from server.api.disconnect import until_disconnect
from server.serving.encoder_client import Encoded, ServedEncoder
from server.serving.record import RequestRecord

R = TypeVar("R")


async def run(
    request: Request, served: ServedEncoder, inputs: Sequence[Any], work: Callable[[str], Awaitable[Encoded[R]]]
) -> list[R]:
    """One result for each input. ``work`` is given the request's id."""
    record: RequestRecord = request.state.record
    record.model, record.num_inputs = served.name, len(inputs)
    encoded = await until_disconnect(request, work(request.state.request_id))
    record.prompt_tokens = encoded.num_tokens
    return encoded.results


def reply(value: Any) -> Response:
    """A JSON answer. FastAPI's own would check each of its numbers again."""
    return Response(msgspec.json.encode(value), media_type="application/json")
