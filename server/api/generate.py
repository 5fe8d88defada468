"""``POST /generate``: JSON or server-sent events in the shape of Text Generation Inference."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from server.api.disconnect import until_disconnect
from server.api.parameter_paths import parameter_paths
from server.api.schemas import GenerateParameters, GenerateRequest
from server.api.sse import data_event, event_stream
from server.errors import ConflictingParameters, InvalidRequest, UnsupportedParameter
from server.serving.generator import Generation, OutputToken, ServedGenerator
from server.serving.options import GenerateOptions, from_mapping
from server.serving.record import RequestRecord

router = APIRouter()

NEUTRAL: dict[str, Any] = {
    "best_of": 1,
    "decoder_input_details": False,
    "grammar": None,
    "n": 1,
    "num_return_sequences": 1,
    "return_parameters": False,
    "top_n_tokens": 0,
}
"""Options whose answers have no shape here yet, with the value that is no wish."""



class Token(msgspec.Struct):
    """One token as clients see it."""

    id: int
    text: str
    logprob: float | None
    special: bool


class StreamDetails(msgspec.Struct):
    """How a generation ended, in its last event."""

    finish_reason: str
    generated_tokens: int
    seed: int
    input_length: int
    cached_tokens: int


class Details(StreamDetails):
    """The same in a JSON answer, with the tokens."""

    prefill: list[Token]
    tokens: list[Token]


class StreamEvent(msgspec.Struct):
    """One token; the last one's event carries the whole text and the details."""

    index: int
    token: Token
    generated_text: str | None = None
    details: StreamDetails | None = None


class Answer(msgspec.Struct, omit_defaults=True):
    """One input's output."""

    generated_text: str
    details: Details | None = None


encode = msgspec.json.Encoder().encode


@router.post("/generate", response_model=None)
async def generate(body: GenerateRequest, request: Request) -> Response:
    """Continue the text of ``inputs``, or of each of a list; with ``stream`` as one event per token."""
    _check_prompt(body)
    record: RequestRecord = request.state.record
    generator: ServedGenerator = request.app.state.registry.get("generate", body.model)
    record.task, record.model = "generate", generator.name
    parameters = body.parameters or GenerateParameters()
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs or []
    if body.stream and not isinstance(body.inputs, str):
        raise ConflictingParameters("stream", "inputs", "a list of inputs is answered as JSON; stream one text")
    record.num_inputs, record.streamed = len(texts), bool(body.stream)
    with parameter_paths(GenerateParameters):
        prompts = await until_disconnect(request, generator.prepare(texts, _options(parameters)))
    generations = [generator.start(prompt) for prompt in prompts]
    if body.stream:
        events = _events(generator, generations[0], record, bool(parameters.return_full_text))
        return await event_stream(request, events, request.app.state.config.keep_alive_s)
    tokens = await until_disconnect(request, generator.generate(generations, record))
    answers = [_answer(*pair, parameters) for pair in zip(generations, tokens, strict=True)]
    content = encode(answers[0] if isinstance(body.inputs, str) else answers)
    return Response(content, media_type="application/json")


def _check_prompt(body: GenerateRequest) -> None:
    for name in body.fields():
        if name not in ("inputs", "stream"):
            raise UnsupportedParameter(name, "leave it out")
    if body.inputs is None:
        raise InvalidRequest("inputs is missing: it is required.", param="inputs")


def _refuse_unsupported(parameters: GenerateParameters) -> None:
    for name, neutral in NEUTRAL.items():
        value = getattr(parameters, name)
        if value is not None and value != neutral:
            raise UnsupportedParameter(name, "leave it out")


def _options(parameters: GenerateParameters) -> GenerateOptions:
    _refuse_unsupported(parameters)
    return from_mapping(parameters.model_dump(exclude_none=True))


async def _events(
    generator: ServedGenerator, generation: Generation, record: RequestRecord, return_full_text: bool
) -> AsyncGenerator[bytes, None]:
    """One event per token. All tokens of one step leave together."""
    index = 0
    async with aclosing(generator.stream(generation, record)) as steps:
        async for tokens in steps:
            events = [StreamEvent(index + i, _token(token)) for i, token in enumerate(tokens, start=1)]
            index += len(tokens)
            if generation.finish_reason is not None:
                events[-1].generated_text = _text(generation, return_full_text)
                events[-1].details = StreamDetails(**_outcome(generation))
            yield b"".join(data_event(encode(event)) for event in events)


def _answer(generation: Generation, tokens: Sequence[OutputToken], parameters: GenerateParameters) -> Answer:
    text = _text(generation, bool(parameters.return_full_text))
    if not parameters.details:
        return Answer(text)
    return Answer(text, Details(**_outcome(generation), prefill=[], tokens=[_token(token) for token in tokens]))


def _token(token: OutputToken) -> Token:
    return Token(token.id, token.text, token.logprob, token.special)


def _text(generation: Generation, return_full_text: bool) -> str:
    return generation.prompt.text + generation.text if return_full_text else generation.text


def _outcome(generation: Generation) -> dict[str, Any]:
    return {
        "finish_reason": _finish_reason(generation),
        "generated_tokens": generation.num_tokens,
        "seed": generation.prompt.params.seed,
        "input_length": len(generation.prompt.ids),
        "cached_tokens": generation.cached_tokens,
    }


def _finish_reason(generation: Generation) -> str:
    """In the words of Text Generation Inference."""
    if generation.finish_reason == "length":
        return "length"
    return "eos_token" if generation.ended_by_end_token else "stop_sequence"
