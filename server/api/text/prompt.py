"""The one place where a body's fields about its prompt become a `PromptSource`, whatever the dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.api.bodies.schemas import GenerateRequest
from server.api.text.schemas import TextBody
from server.serving.prompts import PromptSource


def prompt_source(body: TextBody | GenerateRequest, fields: Mapping[str, Any], **prompt: Any) -> PromptSource:
    """What to go on from. ``prompt`` is what the dialect has its own way to say; ``fields`` are seen by the rules."""
    options = getattr(body, "chat_template_kwargs", None)
    if isinstance(body, TextBody):
        prompt["writes_special"] = body.skip_special_tokens is False
        prompt["keeps_stop"] = bool(body.include_stop_str_in_output)
    seen = {"stream": body.stream, "chat_template_kwargs": options, **fields}
    return PromptSource(
        **prompt,
        chat_template_kwargs=options or {},
        cache_salt=body.cache_salt or "",
        body={name: value for name, value in seen.items() if value is not None},
    )


def chat_source(body: TextBody, messages: list[dict[str, Any]], **prompt: Any) -> PromptSource:
    """Messages for the model's chat template."""
    return prompt_source(body, {"messages": messages}, messages=messages, **prompt)
