"""Items of ``/v1/responses`` as turns of a chat: calls, and reasoning, belong to the turn of the assistant's."""

from __future__ import annotations

from collections.abc import Sequence

from server.api.dialects.openai.responses_body import InputItem, OutputPart, ResponsesBody
from server.api.text.schemas import CalledFunction, ChatMessage, MadeCall, TextPart
from server.errors import InvalidParameter, InvalidRequest

ITEM_TYPES = ("message", "reasoning", "function_call", "function_call_output")
TEXT_TYPES = ("input_text", "output_text", "text")
REASONING_TYPES = ("reasoning_text", "summary_text")


def chat_turns(body: ResponsesBody) -> list[ChatMessage]:
    """Raises for an item that lacks a field of its type."""
    turns = [] if body.instructions is None else [ChatMessage(role="system", content=body.instructions)]
    if isinstance(body.input, str):
        return [*turns, ChatMessage(role="user", content=body.input)]
    for i, item in enumerate(body.input):
        _add(turns, item, f"input.{i}")
    return turns


def _add(turns: list[ChatMessage], item: InputItem, path: str) -> None:
    match item.type:
        case "function_call":
            _add_call(turns, item, path)
        case "function_call_output":
            _add_result(turns, item, path)
        case "reasoning":
            _add_reasoning(turns, item, path)
        case "message" | None:
            _add_message(turns, item, path)
        case _:
            raise InvalidParameter(f"{path}.type", item.type, f"must be one of {', '.join(ITEM_TYPES)}")


def _add_call(turns: list[ChatMessage], item: InputItem, path: str) -> None:
    if item.name is None or item.call_id is None:
        raise _missing(f"{path}.{'name' if item.name is None else 'call_id'}")
    if not turns or turns[-1].role != "assistant":
        turns.append(ChatMessage(role="assistant"))
    function = CalledFunction(name=item.name, arguments=item.arguments)
    call = MadeCall(id=item.call_id, type="function", function=function)
    turns[-1] = turns[-1].model_copy(update={"tool_calls": [*(turns[-1].tool_calls or []), call]})


def _add_result(turns: list[ChatMessage], item: InputItem, path: str) -> None:
    if item.call_id is None or item.output is None:
        raise _missing(f"{path}.{'call_id' if item.call_id is None else 'output'}")
    content = _content(item.output, f"{path}.output")
    turns.append(ChatMessage(role="tool", content=content, tool_call_id=item.call_id))


def _add_message(turns: list[ChatMessage], item: InputItem, path: str) -> None:
    if item.role is None or item.content is None:
        raise _missing(f"{path}.{'role' if item.role is None else 'content'}")
    content = _content(item.content, f"{path}.content")
    last = turns[-1] if turns else None
    if last is not None and item.role == last.role == "assistant" and _is_open(last):
        joined = content if last.content is None else [*_parts(last.content), *_parts(content)]
        turns[-1] = last.model_copy(update={"content": joined})
    else:
        turns.append(ChatMessage(role=item.role, content=content))


def _is_open(turn: ChatMessage) -> bool:
    """Whether more text belongs to this turn: it has said nothing yet, or it goes on behind its calls."""
    return turn.content is None or bool(turn.tool_calls)


def _add_reasoning(turns: list[ChatMessage], item: InputItem, path: str) -> None:
    parts = [*_parts(item.content or []), *(item.summary or [])]
    for i, part in enumerate(parts):
        if part.type not in REASONING_TYPES:
            raise InvalidParameter(
                f"{path}.content.{i}.type", part.type, f"must be one of {', '.join(REASONING_TYPES)}"
            )
    text = "\n".join(part.text or "" for part in parts)
    if text:
        turns.append(ChatMessage(role="assistant", reasoning_content=text))


def _content(content: str | Sequence[OutputPart], path: str) -> str | list[TextPart]:
    if isinstance(content, str):
        return content
    for i, part in enumerate(content):
        if part.type not in TEXT_TYPES:
            raise InvalidParameter(f"{path}.{i}.type", part.type, "must be input_text or output_text")
    return _parts(content)


def _parts(content: str | Sequence[TextPart]) -> list[TextPart]:
    parts = [TextPart(type="text", text=content)] if isinstance(content, str) else content
    return [TextPart(type=part.type if part.type in REASONING_TYPES else "text", text=part.text) for part in parts]


def _missing(path: str) -> InvalidRequest:
    return InvalidRequest(f"{path} is required for an item of this type.", param=path)
