"""``POST /v1/chat/completions``: a conversation continued, in OpenAI's shape."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Response

from server.api.bodies.router import DialectRouter
from server.api.context import ContextDep
from server.api.dialects.openai.bodies import AllowedTools, ChatBody
from server.api.dialects.openai.chat_answers import ChatChunks, chat_answer
from server.api.dialects.openai.dialect import OPENAI
from server.api.dialects.openai.told import told_options
from server.api.http.json_reply import json_reply
from server.api.text.efforts import with_effort
from server.api.text.messages import chat_template_of, template_messages
from server.api.text.prompt import chat_source
from server.api.text.structure import structure_of
from server.api.text.turn_plan import ToolWish, TurnPlan, allowed_tools, turn_plan
from server.api.text.work import TextWork, generator_of
from server.errors import ConflictingParameters, InvalidRequest
from server.serving.output_text import OutputToken

router = DialectRouter(OPENAI, "openai")


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(body: ChatBody, context: ContextDep) -> Response:
    """Answer ``messages``, by way of the model's own chat template; with ``tools``, perhaps by calling some."""
    generator = await generator_of(context, body)
    template = chat_template_of(generator)
    body = with_effort(body, body.reasoning_effort, template, "reasoning_effort")
    messages = template_messages(body.messages, template)
    plan = _plan(body, template, messages[-1]["content"] if body.continue_final_message else "")
    structure = structure_of(body, plan.wish.forced())
    names = {
        "top_n_tokens": "top_logprobs",
        "decoder_input_details": "prompt_logprobs",
        "inputs": "messages",
        **(structure.names if structure else {}),
    }
    work = TextWork(context, body, generator, names)
    source = chat_source(body, messages, **plan.prompt, **_turn(body))
    await work.prepare(source, _added(body, structure and structure.grammar))
    if body.stream:
        return await work.stream(ChatChunks(work, body, plan))
    tokens = await work.run()
    if body.logprobs or body.prompt_logprobs is not None:
        # In a thread: they may be those of thousands of tokens.
        return await asyncio.to_thread(_reply, work, body, plan, tokens[0])
    return _reply(work, body, plan, tokens[0])


def _reply(work: TextWork, body: ChatBody, plan: TurnPlan, tokens: Sequence[OutputToken]) -> Response:
    return json_reply(chat_answer(work, body, plan, tokens))


def _plan(body: ChatBody, template: str, continued: str) -> TurnPlan:
    return turn_plan(
        template,
        _wish(body),
        structure_of(body),
        reads_reasoning=body.reasoning_format != "none",
        shows_reasoning=body.include_reasoning is not False,
        continued=continued,
    )


def _wish(body: ChatBody) -> ToolWish:
    tools, choice = body.tools or [], body.tool_choice
    if isinstance(choice, AllowedTools):
        names = [tool.function.name for tool in choice.allowed_tools.tools]
        tools, choice = allowed_tools(tools, names, "tool_choice.allowed_tools.tools"), choice.allowed_tools.mode
    return ToolWish(tools=tools, choice=choice, is_parallel=body.parallel_tool_calls is not False)


def _turn(body: ChatBody) -> dict[str, bool]:
    """How the prompt ends."""
    if body.continue_final_message and body.add_generation_prompt:
        reason = "a response either continues the last message or begins a new turn"
        raise ConflictingParameters("continue_final_message", "add_generation_prompt", reason)
    return {
        "add_generation_prompt": body.add_generation_prompt is not False,
        "continues": bool(body.continue_final_message),
    }


def _added(body: ChatBody, grammar: Mapping[str, Any] | None) -> dict[str, Any]:
    added: dict[str, Any] = {} if grammar is None else {"grammar": grammar}
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs requires logprobs: true.", param="top_logprobs")
    return added | told_options(body, body.top_logprobs or 0 if body.logprobs else None)
