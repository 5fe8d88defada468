"""``POST /v1/messages``: conversations in Anthropic's shape, and how many tokens one has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import Response

from server.api.bodies.router import DialectRouter
from server.api.context import Context, ContextDep
from server.api.dialects.anthropic.answers import Blocks, Events, message
from server.api.dialects.anthropic.body import MessagesBody, effort_of, format_of, tool_wish
from server.api.dialects.anthropic.dialect import ANTHROPIC
from server.api.dialects.anthropic.turns import chat_turns
from server.api.http.json_reply import json_reply
from server.api.text.efforts import with_effort
from server.api.text.messages import chat_template_of, template_messages
from server.api.text.options import check_single
from server.api.text.prompt import chat_source
from server.api.text.structure import structure_of, with_response_format
from server.api.text.turn_plan import TurnPlan, turn_plan
from server.api.text.work import TextWork, generator_of
from server.errors import InvalidRequest

router = DialectRouter(ANTHROPIC, "anthropic")


@router.post("/v1/messages", response_model=None)
async def messages(body: MessagesBody, context: ContextDep) -> Response:
    """Answer ``messages``, by way of the model's own chat template; with ``tools``, perhaps by calling some."""
    if body.max_tokens is None and body.max_new_tokens is None:
        raise InvalidRequest("max_tokens is required.", param="max_tokens")
    work, plan = await _prepared(body, context, ())
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
    work, _ = await _prepared(body, context, ("max_tokens",))
    return json_reply({"input_tokens": len(work.generations[0].prompt.ids)})


async def _prepared(body: MessagesBody, context: Context, unread: Sequence[str]) -> tuple[TextWork, TurnPlan]:
    """``unread`` fields are of no concern to the route."""
    check_single(body, "a message")
    generator = generator_of(context, body)
    template = chat_template_of(generator)
    formatted = with_response_format(body, format_of(body), "output_config.format")
    shows = body.thinking is None or body.thinking.display != "omitted"
    plan = turn_plan(template, tool_wish(body), structure_of(formatted), shows_reasoning=shows)
    structure = structure_of(formatted, plan.wish.forced())
    added: dict[str, Any] = {} if structure is None else {"grammar": structure.grammar}
    effort, field = effort_of(body)
    body = with_effort(body, effort, template, field).model_copy(update=dict.fromkeys(unread))
    work = TextWork(context, body, generator, structure.names if structure else {})
    turns = template_messages(chat_turns(body), template)
    await work.prepare(chat_source(body, turns, **plan.prompt), added)
    return work, plan
