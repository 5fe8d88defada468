"""``POST /v1/messages``: text conversations in Anthropic's shape, and how many tokens one has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response

from server.api.openai.fields import LenientModel, Refusal, check_fields
from server.api.openai.messages import chat_template_of
from server.api.openai.schemas import REFUSED, ConversationBody
from server.api.openai.shapes import encode, ending
from server.api.openai.structure import structure_of
from server.api.openai.work import StreamWriter, TextWork, generator_of
from server.api.prompt_source import chat_source
from server.api.schemas import NOT_EMPTY, STOP_AT_FIRST_ERROR, Texts, one_error
from server.api.sse import data_event
from server.errors import InvalidParameter, InvalidRequest
from server.serving.generation import Generation, OutputText, OutputToken

router = APIRouter(tags=["anthropic"])

NO_TOOLS = Refusal("/v1/chat/completions has tools", ([],))
REFUSED_HERE: dict[str, Refusal] = {
    **REFUSED,
    "tools": NO_TOOLS,
    "tool_choice": Refusal("/v1/chat/completions has tools", ({"type": "none"}, {"type": "auto"})),
    "thinking": Refusal("the answer is text alone", ({"type": "disabled"},)),
    "mcp_servers": NO_TOOLS,
    "container": NO_TOOLS,
    "service_tier": Refusal("there is one service for all", ("auto", "standard_only")),
}
STOP_REASONS = {"length": "max_tokens", "content_filter": "refusal"}


class Block(LenientModel):
    """A part of a message."""

    type: str
    text: str | None = None


Content = Annotated[str | Annotated[list[Block], STOP_AT_FIRST_ERROR], one_error("a string or a list of text blocks")]


class AnthropicMessage(LenientModel):
    """One turn of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: Content


class MessagesBody(ConversationBody):
    """Body of both routes; every option of ours may stand in it too. max_tokens is required for an answer."""

    messages: Annotated[list[AnthropicMessage], STOP_AT_FIRST_ERROR, NOT_EMPTY]
    """Turns that must end with the user's: an answer begins a turn of its own. Blocks of the type text have a text."""
    system: Content | None = None
    stop_sequences: Texts | None = None


@router.post("/v1/messages", response_model=None)
async def messages(body: MessagesBody, request: Request) -> Response:
    """Answer ``messages``, by way of the model's own chat template."""
    if body.max_tokens is None and body.max_new_tokens is None:
        raise InvalidRequest("max_tokens is missing: it is required.", param="max_tokens")
    work = await _prepared(body, request, ())
    if body.stream:
        return await work.stream(Events(work))
    await work.run()
    return Response(encode(_message(work)), media_type="application/json")


@router.post("/v1/messages/count_tokens", response_model=None)
async def count_tokens(body: MessagesBody, request: Request) -> Response:
    """The tokens of the prompt that ``messages`` become."""
    work = await _prepared(body, request, ("max_tokens",))
    return Response(encode({"input_tokens": len(work.generations[0].prompt.ids)}), media_type="application/json")


async def _prepared(body: MessagesBody, request: Request, unread: Sequence[str]) -> TextWork:
    """``unread`` fields are of no concern to the route."""
    check_fields(request, body, REFUSED_HERE)
    if max(body.n or 1, body.num_return_sequences or 1) > 1:
        raise InvalidParameter("n", body.n or body.num_return_sequences, "must be 1: a message is one answer")
    generator = generator_of(request, body)
    chat_template_of(generator)
    structure = structure_of(body)
    added: dict[str, Any] = {} if structure is None else {"grammar": structure.grammar}
    body = body.model_copy(update=dict.fromkeys(unread))
    work = TextWork(request, body, generator, structure.names if structure else {})
    turns = list(_turns(body))
    await work.prepare(chat_source(body, turns), added)
    return work


def _turns(body: MessagesBody) -> Iterator[dict[str, Any]]:
    if not body.messages or body.messages[-1].role == "assistant":
        raise InvalidRequest("messages must end with the user's: an answer begins a turn of its own.", param="messages")
    if body.system is not None:
        yield {"role": "system", "content": _text(body.system, "system")}
    for i, message in enumerate(body.messages):
        yield {"role": message.role, "content": _text(message.content, f"messages.{i}.content")}


def _text(content: str | list[Block], path: str) -> str:
    if isinstance(content, str):
        return content
    for i, block in enumerate(content):
        if block.type != "text" or block.text is None:
            raise InvalidParameter(f"{path}.{i}.type", block.type, "must be text, with a text")
    return "\n".join(block.text or "" for block in content)


def _head(work: TextWork) -> dict[str, Any]:
    name = {"id": f"msg_{work.record.request_id}", "type": "message", "role": "assistant", "model": work.record.model}
    return {**name, "content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(work.generations[0])}


def _message(work: TextWork) -> dict[str, Any]:
    (output,) = work.generations[0].answers
    return {**_head(work), "content": [{"type": "text", "text": output.text}], **_ending(output)}


def _usage(generation: Generation) -> dict[str, int]:
    """What comes from the prefix cache is counted apart, and nothing is written to a cache for a price."""
    num_cached = generation.cached_tokens
    return {
        "input_tokens": len(generation.prompt.ids) - num_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": num_cached,
        "output_tokens": generation.num_tokens,
    }


def _ending(output: OutputText) -> dict[str, Any]:
    told = ending(output)
    stop = told["stop_reason"] if told["finish_reason"] == "stop" else None
    reason = "end_turn" if stop is None else "stop_sequence"
    return {
        "stop_reason": STOP_REASONS.get(told["finish_reason"], reason),
        "stop_sequence": stop if isinstance(stop, str) else None,
    }


class Events(StreamWriter):
    """Named events: a message with one block of text."""

    def __init__(self, work: TextWork) -> None:
        self._work = work
        self._is_started = False

    def step(self, number: int, tokens: Mapping[int, Sequence[OutputToken]]) -> bytes:
        text = "".join([token.text for token in tokens[0]])
        events = [] if self._is_started else list(self._start())
        self._is_started = True
        if text:
            delta = {"type": "text_delta", "text": text}
            events.append({"type": "content_block_delta", "index": number, "delta": delta})
        return b"".join(map(named_event, events))

    def _start(self) -> Iterator[dict[str, Any]]:
        yield {"type": "message_start", "message": _head(self._work)}
        yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}

    def end(self) -> bytes:
        (generation,) = self._work.generations
        ended = {"type": "message_delta", "delta": _ending(generation.outputs[0]), "usage": _usage(generation)}
        events: list[dict[str, Any]] = [{"type": "content_block_stop", "index": 0}, ended, {"type": "message_stop"}]
        return b"".join(map(named_event, events))

    def empty(self) -> bytes:
        return named_event({"type": "ping"})

    def error(self, data: bytes) -> bytes:
        return b"event: error\n" + data_event(b'{"type": "error", ' + data.removeprefix(b"{"))


def named_event(event: Mapping[str, Any]) -> bytes:
    """An event that has its own type for a name."""
    return f"event: {event['type']}\n".encode() + data_event(encode(event))
