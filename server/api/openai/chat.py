"""``POST /v1/chat/completions``: a conversation continued, in OpenAI's shape."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from server.api.openai.chat_answers import ChatChunks, chat_answer
from server.api.openai.fields import check_fields
from server.api.openai.messages import (
    CALL_END,
    CALL_START,
    chat_template_of,
    describes_tools,
    knows_calls,
    template_messages,
    template_tools,
)
from server.api.openai.schemas import REFUSED_IN_CHAT, ChatBody
from server.api.openai.shapes import encode
from server.api.openai.structure import forced_tools, structure_of
from server.api.openai.work import TextWork, generator_of
from server.api.prompt_source import chat_source
from server.errors import ConflictingParameters, InvalidRequest
from server.serving.generation import OutputToken
from server.serving.prompts import PromptSource

router = APIRouter(tags=["openai"])


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(body: ChatBody, request: Request) -> Response:
    """Answer ``messages``, by way of the model's own chat template; with ``tools``, perhaps by calling some."""
    check_fields(request, body, REFUSED_IN_CHAT)
    generator = generator_of(request, body)
    template = chat_template_of(generator)
    _check_tools(body, template)
    structure = structure_of(body, forced_tools(body))
    names = {"top_n_tokens": "top_logprobs", "inputs": "messages", **(structure.names if structure else {})}
    work = TextWork(request, body, generator, names)
    await work.prepare(_source(body, template), _added(body, structure and structure.grammar))
    if body.stream:
        return await work.stream(ChatChunks(work, body))
    tokens = await work.run()
    if body.logprobs:
        # In a thread: they may be those of thousands of tokens.
        return await asyncio.to_thread(_reply, work, body, tokens[0])
    return _reply(work, body, tokens[0])


def _reply(work: TextWork, body: ChatBody, tokens: Sequence[OutputToken]) -> Response:
    return Response(encode(chat_answer(work, body, tokens)), media_type="application/json")


def may_call(body: ChatBody) -> bool:
    """Whether the model is free to call tools, and to answer in words."""
    return bool(body.tools) and body.tool_choice in (None, "auto")


def _check_tools(body: ChatBody, template: str) -> None:
    if not may_call(body):
        return
    if not knows_calls(template):
        raise InvalidRequest(
            "The chat template of this model has no tool calls of the form that is read here (<tool_call>). Force a "
            'call, which any model can make: tool_choice is "required" or names a function. Or leave tools out.',
            param="tools",
        )
    if (structure := structure_of(body)) is not None:
        raise ConflictingParameters(
            structure.field, "tools", "an answer that may be a call has no structure; set tool_choice"
        )


def _source(body: ChatBody, template: str) -> PromptSource:
    messages = template_messages(body.messages, template)
    is_told = bool(body.tools) and body.tool_choice != "none" and describes_tools(template)
    return chat_source(
        body,
        messages,
        tools=template_tools(body.tools or []) if is_told else (),
        written=(CALL_START, CALL_END) if may_call(body) else (),
    )


def _added(body: ChatBody, grammar: Mapping[str, Any] | None) -> dict[str, Any]:
    added: dict[str, Any] = {} if grammar is None else {"grammar": grammar}
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs are told with logprobs: set logprobs to true.", param="top_logprobs")
    if body.logprobs:
        added |= {"details": True, "top_n_tokens": body.top_logprobs or 0}
    if may_call(body) and body.parallel_tool_calls is False:
        # The output ends with its first call.
        stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
        added["stop"] = [*stop, CALL_END]
    return added
