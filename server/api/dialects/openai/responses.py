"""``POST /v1/responses``: conversations in OpenAI's newer shape. Nothing is stored."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from server.api.bodies.router import DialectRouter
from server.api.context import ContextDep
from server.api.dialects.openai.dialect import RESPONSES
from server.api.dialects.openai.responses_answers import Events, Items, response_object
from server.api.dialects.openai.responses_body import ResponsesBody, format_of, tool_wish
from server.api.dialects.openai.responses_turns import chat_turns
from server.api.http.json_reply import json_reply
from server.api.text.efforts import with_effort
from server.api.text.messages import chat_template_of, template_messages
from server.api.text.options import check_single
from server.api.text.prompt import chat_source
from server.api.text.structure import structure_of, with_response_format
from server.api.text.turn_plan import turn_plan
from server.api.text.work import TextWork, generator_of

router = DialectRouter(RESPONSES, "openai")


@router.post("/v1/responses", response_model=None)
async def responses(body: ResponsesBody, context: ContextDep) -> Response:
    """Answer ``input``, by way of the model's own chat template; with ``tools``, perhaps by calling some."""
    check_single(body, "a response")
    generator = generator_of(context, body)
    template = chat_template_of(generator)
    formatted = with_response_format(body, format_of(body), "text.format")
    plan = turn_plan(template, tool_wish(body), structure_of(formatted))
    structure = structure_of(formatted, plan.wish.forced())
    added: dict[str, Any] = {} if structure is None else {"grammar": structure.grammar}
    names = {"messages": "input", **(structure.names if structure else {})}
    work = TextWork(context, body, generator, names)
    turns = template_messages(chat_turns(body), template)
    effort = None if body.reasoning is None else body.reasoning.effort
    source_body = with_effort(body, effort, template, "reasoning.effort")
    await work.prepare(chat_source(source_body, turns, **plan.prompt), added)
    if body.stream:
        return await work.stream(Events(work, body, plan))
    (tokens,) = await work.run()
    items = Items(work, plan)
    for events in (items.read(tokens), items.end()):
        list(events)
    return json_reply(response_object(work, body, items))
