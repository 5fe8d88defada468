"""``POST /v1/responses``: conversations in OpenAI's newer shape. Nothing is stored."""

from __future__ import annotations

from fastapi import Response

from server.api.bodies.router import DialectRouter
from server.api.context import ContextDep
from server.api.dialects.openai.dialect import RESPONSES
from server.api.dialects.openai.responses_answers import Events, Items, response_object
from server.api.dialects.openai.responses_body import ResponsesBody, effort_of, format_of, tool_wish
from server.api.dialects.openai.responses_turns import chat_turns
from server.api.http.json_reply import json_reply
from server.api.text.conversation import Terms, prepared

router = DialectRouter(RESPONSES, "openai")

TERMS = Terms[ResponsesBody](
    answer="a response",
    turns=chat_turns,
    tool_wish=tool_wish,
    format_of=format_of,
    format_field="text.format",
    effort_of=effort_of,
    names={"messages": "input"},
)


@router.post("/v1/responses", response_model=None)
async def responses(body: ResponsesBody, context: ContextDep) -> Response:
    """Answer ``input``, by way of the model's own chat template; with ``tools``, perhaps by calling some."""
    work, plan = await prepared(context, body, TERMS)
    if body.stream:
        return await work.stream(Events(work, body, plan))
    (tokens,) = await work.run()
    items = Items(work, plan)
    for events in (items.read(tokens), items.end()):
        list(events)
    return json_reply(response_object(work, body, items))
