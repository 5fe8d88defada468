"""How much a model is to reason, as far as its chat template has a say in it."""

from __future__ import annotations

from typing import Any, TypeVar

from server.api.text.schemas import ConversationBody
from server.errors import InvalidParameter
from server.text.turns.thinking import think_marks_of

DEFAULT = "medium"
OFF = "none"


Body = TypeVar("Body", bound=ConversationBody)


def with_effort(body: Body, effort: str | None, chat_template: str, field: str) -> Body:
    """The body whose ``chat_template_kwargs`` ask for the effort too; what they already set comes first."""
    wanted = effort_options(effort, chat_template, field)
    return body.model_copy(update={"chat_template_kwargs": {**wanted, **(body.chat_template_kwargs or {})} or None})


def effort_options(effort: str | None, chat_template: str, field: str) -> dict[str, Any]:
    """The ``chat_template_kwargs`` that an effort means. Raises for one that the template has no way to ask for.

    A template has either degrees (``reasoning_effort``), a switch (``enable_thinking``), or nothing to set.
    """
    if effort is None:
        return {}
    if "enable_thinking" in chat_template and effort == OFF:
        return {"enable_thinking": False}
    if "reasoning_effort" in chat_template:
        return {"reasoning_effort": effort}
    reasons = think_marks_of(chat_template) is not None
    if "enable_thinking" in chat_template and effort == DEFAULT:
        return {"enable_thinking": True}
    if effort == (DEFAULT if reasons else OFF):
        return {}
    can = f"reasoning can be {OFF} or {DEFAULT}" if "enable_thinking" in chat_template else "it cannot be set"
    has = can if reasons else "there is no reasoning"
    raise InvalidParameter(field, effort, f"is not supported: with this model's chat template {has}")
