"""What the encoder routes have in common: fill the template, note the request, run while the client stays, reply."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response

from server.api.bodies.parameter_paths import parameter_paths
from server.api.bodies.schemas import StrictModel
from server.api.encode.schemas import ClassifyRequest, NerRequest
from server.api.http.disconnect import until_disconnect
from server.errors import ConflictingParameters, InvalidRequest
from server.serving.encoder_client import ServedEncoder
from server.serving.record import RequestRecord
from server.serving.template_files import TemplateTask
from server.serving.templates import Templates
from server.text.templated import RenderedPrompt

R = TypeVar("R")


async def rendered(request: Request, body: ClassifyRequest | NerRequest, task: TemplateTask) -> RenderedPrompt | None:
    """The text that the body's template makes; None if the body has ``inputs``. It has one of them."""
    if body.template is None:
        _check_no_template(body)
        return None
    if body.inputs is not None:
        raise ConflictingParameters("template", "inputs", "a template creates the input; send only one of them")
    templates: Templates = request.app.state.registry.services.templates
    rendering = templates.render(body.template, task, body.variables or {}, body.examples or [])
    return await until_disconnect(request, rendering)


def _check_no_template(body: ClassifyRequest | NerRequest) -> None:
    if body.inputs is None:
        raise InvalidRequest("inputs is required unless there is a template.", param="inputs")
    for name in ("variables", "examples"):
        if getattr(body, name) is not None:
            raise InvalidRequest(f"{name} requires a template.", param=name)


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
