"""A conversation in OpenAI's form as chat templates know it."""

from __future__ import annotations

import json
from typing import Any

from server.api.http_errors import InvalidJson
from server.api.json_body import check_json
from server.api.openai.schemas import ChatMessage, MadeCall, TextPart, Tool
from server.errors import InvalidParameter, InvalidRequest
from server.serving.generator import ServedGenerator

CALL_START, CALL_END = "<tool_call>", "</tool_call>"


def chat_template_of(generator: ServedGenerator) -> str:
    """Raises where the model has none."""
    template = generator.ready.tokenizer.chat_template
    if template is None:
        raise InvalidRequest(
            f"Model {generator.name} has no chat template, so it cannot chat. Send its text to /v1/completions.",
            param="messages",
        )
    return template


def template_messages(messages: list[ChatMessage], chat_template: str) -> list[dict[str, Any]]:
    """What the template is given.

    To one that does not know the word, ``developer`` is ``system``, and calls stand in the message's text.
    """
    return [_message(message, chat_template, f"messages.{i}") for i, message in enumerate(messages)]


def _message(message: ChatMessage, chat_template: str, path: str) -> dict[str, Any]:
    role = "system" if message.role == "developer" and "developer" not in chat_template else message.role
    found: dict[str, Any] = {"role": role, "content": _text(message.content, path)}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            found[name] = value
    calls = [_call(call) for call in message.tool_calls or []]
    if calls and "tool_calls" in chat_template:
        found["tool_calls"] = calls
    elif calls:
        written = [f"{CALL_START}\n{json.dumps(call['function'], ensure_ascii=False)}\n{CALL_END}" for call in calls]
        found["content"] = "\n".join([*filter(None, [found["content"]]), *written])
    return found


def _text(content: str | list[TextPart] | None, path: str) -> str:
    """Templates join it to other texts: it is never null."""
    if content is None or isinstance(content, str):
        return content or ""
    for i, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise InvalidParameter(f"{path}.content.{i}.type", part.type, "must be text, with a text")
    return "\n".join(part.text or "" for part in content)


def _call(call: MadeCall) -> dict[str, Any]:
    """Templates write the arguments as JSON themselves: they want them as an object."""
    function = {"name": call.function.name, "arguments": _arguments(call.function.arguments or "{}")}
    found: dict[str, Any] = {"type": "function", "function": function}
    return found if call.id is None else {"id": call.id, **found}


def _arguments(text: str) -> Any:
    """What is no JSON that a body could hold, an answer that was cut for example, stays text."""
    try:
        check_json(text.encode())
    except InvalidJson:
        return text
    return json.loads(text)


def template_tools(tools: list[Tool]) -> list[dict[str, Any]]:
    """The tools as the client described them."""
    return [
        {"type": "function", "function": tool.function.model_dump(exclude_none=True, include=TOLD_OF_TOOLS)}
        for tool in tools
    ]


TOLD_OF_TOOLS = {"name", "description", "parameters"}


def describes_tools(chat_template: str) -> bool:
    """Whether the template has a place for tools."""
    return "tools" in chat_template


def knows_calls(chat_template: str) -> bool:
    """Whether its model writes calls in Hermes' way, which is the one that is read here."""
    return describes_tools(chat_template) and CALL_START in chat_template
