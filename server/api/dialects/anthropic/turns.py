"""Messages in blocks as turns of a chat: each result of a tool is a turn of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator

from server.api.dialects.anthropic.body import AnthropicMessage, Block, MessagesBody, TextBlock
from server.api.text.schemas import CalledFunction, ChatMessage, MadeCall
from server.errors import InvalidParameter, InvalidRequest


def chat_turns(body: MessagesBody) -> list[ChatMessage]:
    if not body.messages or body.messages[-1].role == "assistant":
        raise InvalidRequest("messages must end with a user message.", param="messages")
    turns = [] if body.system is None else [ChatMessage(role="system", content=_text(body.system, "system"))]
    for i, message in enumerate(body.messages):
        turns += _turns(message, f"messages.{i}.content")
    return turns


def _turns(message: AnthropicMessage, path: str) -> Iterator[ChatMessage]:
    if isinstance(message.content, str):
        yield ChatMessage(role=message.role, content=message.content)
    elif message.role == "assistant":
        yield _assistants(message.content, path)
    else:
        yield from _others(message, message.content, path)


def _others(message: AnthropicMessage, blocks: list[Block], path: str) -> Iterator[ChatMessage]:
    """Text between results stays between them."""
    texts: list[str] = []
    for i, block in enumerate(blocks):
        if block.type != "tool_result" or message.role != "user":
            known = "text or tool_result" if message.role == "user" else "text"
            texts.append(_text_of(block, f"{path}.{i}", known))
            continue
        if texts:
            yield ChatMessage(role=message.role, content="\n".join(texts))
        texts = []
        yield _result(block, f"{path}.{i}")
    if texts or not blocks:
        yield ChatMessage(role=message.role, content="\n".join(texts))


def _result(block: Block, path: str) -> ChatMessage:
    if block.tool_use_id is None:
        raise _missing(f"{path}.tool_use_id")
    text = _text(block.content or "", f"{path}.content")
    return ChatMessage(
        role="tool", content=f"Error: {text}" if block.is_error else text, tool_call_id=block.tool_use_id
    )


def _assistants(blocks: list[Block], path: str) -> ChatMessage:
    texts, thoughts, calls = [], [], []
    for i, block in enumerate(blocks):
        if block.type == "thinking":
            if block.thinking is None:
                raise _missing(f"{path}.{i}.thinking")
            thoughts.append(block.thinking)
        elif block.type == "tool_use":
            calls.append(_call(block, f"{path}.{i}"))
        else:
            texts.append(_text_of(block, f"{path}.{i}", "text, thinking or tool_use"))
    return ChatMessage(
        role="assistant",
        content="\n".join(texts),
        reasoning_content="\n".join(thoughts) or None,
        tool_calls=calls or None,
    )


def _call(block: Block, path: str) -> MadeCall:
    for name in ("id", "name", "input"):
        if getattr(block, name) is None:
            raise _missing(f"{path}.{name}")
    function = CalledFunction(name=block.name or "", arguments=json.dumps(block.input, ensure_ascii=False))
    return MadeCall(id=block.id, type="function", function=function)


def _text(content: str | list[TextBlock], path: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_text_of(block, f"{path}.{i}", "text") for i, block in enumerate(content))


def _text_of(block: TextBlock, path: str, known: str) -> str:
    if block.type != "text":
        raise InvalidParameter(f"{path}.type", block.type, f"must be {known}")
    if block.text is None:
        raise _missing(f"{path}.text")
    return block.text


def _missing(path: str) -> InvalidRequest:
    return InvalidRequest(f"{path} is required for a block of this type.", param=path)
