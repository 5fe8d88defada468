"""``POST /generate`` and the other paths of Text Generation Inference: JSON or server-sent events in its shape."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from fastapi import Response

from server.api.bodies.router import DialectRouter
from server.api.bodies.schemas import GenerateRequest
from server.api.context import Context, ContextDep
from server.api.dialects.tgi import answers
from server.api.dialects.tgi.adapter_id import read_adapter_id
from server.api.http.dialect import SLUICE
from server.api.http.json_reply import encode, json_reply
from server.api.http.sse import data_event
from server.api.text.prompt import prompt_source
from server.errors import InvalidParameter, InvalidRequest, UnsupportedParameter
from server.sentences import Reader
from server.serving.generation import Generation
from server.serving.generator import ServedGenerator
from server.serving.options.table import OPTIONS
from server.serving.output_text import OutputToken
from server.serving.prompts import PromptSource
from server.serving.record import RequestRecord
from server.tasks import GENERATE

router = DialectRouter(SLUICE)


@router.post("/generate", response_model=None)
async def generate(body: GenerateRequest, context: ContextDep) -> Response:
    """Continue the text of ``inputs``, or of each of a list, or of a ``template`` or of ``messages``.

    With ``stream`` as one event per token.
    """
    return await _generated(body, context)


@router.post("/generate_stream", response_model=None)
async def generate_stream(body: GenerateRequest, context: ContextDep) -> Response:
    """As ``/generate`` with ``stream``, which must be true or left out: this path streams."""
    if body.stream is False:
        raise InvalidParameter("stream", False, "must be true or omitted, because this path streams")
    return await _generated(body.model_copy(update={"stream": True}), context)


@router.post("/", response_model=None)
async def root(body: GenerateRequest, context: ContextDep) -> Response:
    """As ``/generate``; a JSON answer is always a list, as clients that are given the server's bare URL expect."""
    return await _generated(body, context, is_list=True)


async def _generated(body: GenerateRequest, context: Context, *, is_list: bool = False) -> Response:
    record = context.record
    source = _source(body)
    record.reader = Reader(parameters=OPTIONS)
    name, parameters = read_adapter_id(body, context.registry)
    generator = context.registry.get(ServedGenerator, name)
    if parameters.adapters:
        generator = await context.until_disconnect(context.front.mixtures.find(generator, parameters.adapters))
        parameters = parameters.model_copy(update={"adapters": None})
    record.task, record.model = GENERATE.name, generator.name
    record.num_inputs, record.streamed = source.num_prompts, bool(body.stream)
    prompts = await context.until_disconnect(generator.prepare(source, parameters))
    generations = [generator.start(prompt) for prompt in prompts]
    if body.stream:
        return await context.stream(_events(generator, generations[0], record))
    tokens = await context.until_disconnect(generator.generate(generations, record))
    is_list = is_list or isinstance(body.inputs, list)
    if not prompts[0].options.details:
        return _reply(generations, tokens, is_list)
    # In a thread: it may hold thousands of tokens, and many more that were likely.
    return await asyncio.to_thread(_reply, generations, tokens, is_list)


def _reply(generations: Sequence[Generation], tokens: Sequence[Sequence[OutputToken]], is_list: bool) -> Response:
    replies = [answers.answer(*pair) for pair in zip(generations, tokens, strict=True)]
    return json_reply(replies if is_list else replies[0])


def _source(body: GenerateRequest) -> PromptSource:
    if body.inputs is None and body.template is None and body.messages is None:
        raise InvalidRequest("inputs is required, or a template, or messages.", param="inputs")
    if body.chat_template is not None:
        raise UnsupportedParameter(
            "chat_template", "messages are rendered with the chat template of the model's folder"
        )
    return prompt_source(
        body,
        body.fields(),
        texts=[body.inputs] if isinstance(body.inputs, str) else body.inputs,
        template=body.template,
        variables=body.variables or {},
        examples=body.examples or [],
        messages=None if body.messages is None else [message.model_dump() for message in body.messages],
    )


async def _events(
    generator: ServedGenerator, generation: Generation, record: RequestRecord
) -> AsyncGenerator[bytes, None]:
    """One event per token. All tokens of one step leave together."""
    async with aclosing(generator.stream(generation, record)) as steps:
        async for tokens in steps:
            events = [data_event(encode(event)) for event in answers.events(generation, tokens)]
            yield events[0] if len(events) == 1 else b"".join(events)
