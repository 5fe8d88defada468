"""A conversation in a dialect's own terms, as OpenAI's chat has it: one answer of one output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from server.api.context import Context
from server.api.text.efforts import with_effort
from server.api.text.messages import chat_template_of, template_messages
from server.api.text.options import check_single
from server.api.text.prompt import chat_source
from server.api.text.schemas import ChatMessage, ConversationBody, ResponseFormat
from server.api.text.structure import RESPONSE_FORMAT, structure_of, with_response_format
from server.api.text.turn_plan import ToolWish, TurnPlan, turn_plan
from server.api.text.work import TextWork, generator_of

Body = TypeVar("Body", bound=ConversationBody)


@dataclass(frozen=True, kw_only=True)
class Terms(Generic[Body]):
    """What a dialect's body means in the terms of the chat."""

    answer: str
    """What the dialect calls an answer, with its article."""
    turns: Callable[[Body], list[ChatMessage]]
    tool_wish: Callable[[Body], ToolWish]
    format_of: Callable[[Body], ResponseFormat | None]
    """The structure that the answer is to have."""
    format_field: str
    """The field that asks for it."""
    effort_of: Callable[[Body], tuple[str | None, str]]
    """How much the model is to reason, and the field that says it."""
    names: Mapping[str, str]
    """The chat's names of fields, and the dialect's."""


async def prepared(
    context: Context, body: Body, terms: Terms[Body], *, shows_reasoning: bool = True
) -> tuple[TextWork, TurnPlan]:
    """All that can be refused is refused here."""
    check_single(body, terms.answer)
    generator = await generator_of(context, body)
    template = chat_template_of(generator)
    wanted = terms.format_of(body)
    format_field = RESPONSE_FORMAT if wanted is None else terms.format_field
    formatted = with_response_format(body, wanted, terms.format_field)
    structure = structure_of(formatted, format_field=format_field)
    plan = turn_plan(template, terms.tool_wish(body), structure, shows_reasoning=shows_reasoning)
    structure = structure_of(formatted, plan.wish.forced(), format_field)
    work = TextWork(context, body, generator, {**terms.names, **(structure.names if structure else {})})
    turns = template_messages(terms.turns(body), template)
    effort, effort_field = terms.effort_of(body)
    source = chat_source(with_effort(body, effort, template, effort_field), turns, **plan.prompt)
    await work.prepare(source, {} if structure is None else {"grammar": structure.grammar})
    return work, plan
