"""``POST /v1/messages``: conversations in Anthropic's shape, and how many tokens one has."""

from __future__ import annotations

from fastapi import Response

from server.api.bodies.router import DialectRouter
from server.api.context import Context, ContextDep
from server.api.dialects.anthropic.answers import Blocks, Events, message
from server.api.dialects.anthropic.body import MessagesBody, effort_of, format_of, tool_wish
from server.api.dialects.anthropic.dialect import ANTHROPIC
from server.api.dialects.anthropic.turns import chat_turns
from server.api.http.json_reply import json_reply
from server.api.text.conversation import Terms, prepared
from server.api.text.turn_plan import TurnPlan
from server.api.text.work import TextWork
from server.errors import InvalidRequest

router = DialectRouter(ANTHROPIC, "anthropic")

TERMS = Terms[MessagesBody](
    answer="a message",
    turns=chat_turns,
    tool_wish=tool_wish,
    format_of=format_of,
    format_field="output_config.format",
    effort_of=effort_of,
    names={},
)


@router.post("/v1/messages", response_model=None)
async def messages(body: MessagesBody, context: ContextDep) -> Response:
    """Answer ``messages``, by way of the model's own chat template; with ``tools``, perhaps by calling some."""
    if body.max_tokens is None and body.max_new_tokens is None:
        raise InvalidRequest("max_tokens is required.", param="max_tokens")
    work, plan = await _prepared(context, body)
    if body.stream:
        return await work.stream(Events(work, plan))
    (tokens,) = await work.run()
    blocks = Blocks(work, plan)
    for events in (blocks.read(tokens), blocks.end()):
        list(events)
    return json_reply(message(work, blocks))


@router.post("/v1/messages/count_tokens", response_model=None)
async def count_tokens(body: MessagesBody, context: ContextDep) -> Response:
    """The tokens of the prompt that ``messages`` become."""
    work, _ = await _prepared(context, body.model_copy(update={"max_tokens": None}))
    return json_reply({"input_tokens": len(work.generations[0].prompt.input_ids)})


async def _prepared(context: Context, body: MessagesBody) -> tuple[TextWork, TurnPlan]:
    shows_reasoning = body.thinking is None or body.thinking.display != "omitted"
    return await prepared(context, body, TERMS, shows_reasoning=shows_reasoning)
