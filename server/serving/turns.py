"""What a chat template made of messages, judged and cut by the messages themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from server.errors import InvalidParameter
from server.sentences import sentence
from server.text.templated import RenderedPrompt

COMMON_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


def check_roles(messages: Sequence[Mapping[str, Any]], text: str) -> None:
    """Raise for a role that the template leaves out, with what the message says, instead of refusing it."""
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in COMMON_ROLES and isinstance(content, str) and content.strip() not in text:
            raise InvalidParameter(f"messages.{i}.role", role, "must be a role that the model's chat template supports")


def cut_after_last(messages: Sequence[Mapping[str, Any]], rendered: RenderedPrompt) -> RenderedPrompt:
    """The prompt up to the end of the last message's text, so that an output goes on with it."""
    said = str(messages[-1].get("content") or "")
    start = rendered.text.rfind(said.strip())
    if start < 0 or not said.strip():
        rule = sentence("must end with text, because {continue_final_message} is true")
        raise InvalidParameter("messages", said, rule)
    # Some templates strip a message's text, and some do not.
    kept = said.lstrip() if rendered.text.startswith(said.lstrip(), start) else said.strip()
    stop = start + len(kept)
    return dataclasses.replace(
        rendered,
        text=rendered.text[:stop],
        template_spans=[(begin, min(end, stop)) for begin, end in rendered.template_spans if begin < stop],
        variable_spans=[
            span._replace(stop=min(span.stop, stop)) for span in rendered.variable_spans if span.start < stop
        ],
    )
