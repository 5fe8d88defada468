"""A conversation in OpenAI's form as chat templates know it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.api.http.errors import InvalidJson
from server.api.http.json_body import strict_json
from server.api.text.schemas import ChatMessage, MadeCall, TextPart, Tool
from server.errors import InvalidParameter, InvalidRequest
from server.serving.generator import ServedGenerator
from server.text.turns.calls import CallFormat
from server.text.turns.formats import HERMES, call_format_of


def chat_template_of(generator: ServedGenerator) -> str:
    """Raises where the model has none."""
    template = generator.ready.tokenizer.chat_template
    if template is None:
        raise InvalidRequest(
            f"Model {generator.name} has no chat template. Send text to /v1/completions instead.",
            param="messages",
        )
    return template


def template_messages(messages: list[ChatMessage], chat_template: str) -> list[dict[str, Any]]:
    """What the template is given.

    To one that does not know the word, ``developer`` is ``system``, and calls stand in the message's text.
    """
    call_format = call_format_of(chat_template) or HERMES
    return [_message(message, chat_template, call_format, f"messages.{i}") for i, message in enumerate(messages)]


def _message(message: ChatMessage, chat_template: str, call_format: CallFormat, path: str) -> dict[str, Any]:
    role = "system" if message.role == "developer" and "developer" not in chat_template else message.role
    found: dict[str, Any] = {"role": role, "content": _text(message.content, path)}
    known = {
        "name": message.name,
        "tool_call_id": message.tool_call_id and call_format.known_id(message.tool_call_id),
        "reasoning_content": message.reasoning_content or message.reasoning,
    }
    found |= {name: value for name, value in known.items() if value is not None}
    calls = [_call(call, call_format) for call in message.tool_calls or []]
    if calls and "tool_calls" in chat_template:
        found["tool_calls"] = calls
    elif calls:
        written = [call_format.written(**call["function"]) for call in calls]
        found["content"] = "\n".join([*filter(None, [found["content"]]), *written])
    return found


def text_of(message: ChatMessage) -> str:
    """All of a message's text."""
    return _text(message.content, "messages")


def _text(content: str | list[TextPart] | None, path: str) -> str:
    """Templates join it to other texts: it is never null."""
    if content is None or isinstance(content, str):
        return content or ""
    for i, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise InvalidParameter(f"{path}.content.{i}.type", part.type, "must be a text block with a text field")
    return "\n".join(part.text or "" for part in content)


def _call(call: MadeCall, call_format: CallFormat) -> dict[str, Any]:
    """Templates write the arguments as JSON themselves: they want them as an object."""
    function = {"name": call.function.name, "arguments": _arguments(call.function.arguments or "{}")}
    found: dict[str, Any] = {"type": "function", "function": function}
    return found if call.id is None else {"id": call_format.known_id(call.id), **found}


def _arguments(text: str) -> Any:
    """What is no JSON that a body could hold, an answer that was cut for example, stays text."""
    try:
        return strict_json(text.encode())
    except InvalidJson:
        return text


def template_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools as the client described them."""
    return [
        {"type": "function", "function": tool.function.model_dump(exclude_none=True, include=TOLD_OF_TOOLS)}
        for tool in tools
    ]


TOLD_OF_TOOLS = {"name", "description", "parameters"}
