"""What the three encoder routes have in common: note the request, run until done or the client leaves, reply."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response

from server.api.disconnect import until_disconnect
from server.api.schemas import StrictModel
from server.errors import InvalidRequest
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
    with parameter_paths(parameters):
        return await until_disconnect(request, work(record))


@contextmanager
def parameter_paths(parameters: StrictModel) -> Iterator[None]:
    """Errors name a parameter by its place in the body, as those of the schema do."""
    try:
        yield
    except InvalidRequest as error:
        if error.param in type(parameters).model_fields:
            error.param = f"parameters.{error.param}"
        raise


def reply(value: Any) -> Response:
    """A JSON answer. FastAPI's own would check each of its numbers again."""
    return Response(msgspec.json.encode(value), media_type="application/json")
