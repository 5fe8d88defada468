"""Bodies of ``/v1/chat/completions`` and ``/v1/completions``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from server.api.bodies.fields import LenientModel, Refusal
from server.api.bodies.schemas import NOT_EMPTY, STOP_AT_FIRST_ERROR, Ids, one_error
from server.api.text.schemas import REFUSED, ChatMessage, ConversationBody, NamedTool, TextBody, ToldFields, Tool

REFUSED_IN_CHAT: dict[str, Refusal] = {
    **REFUSED,
    "functions": Refusal("it is deprecated; use tools", ([],)),
    "function_call": Refusal("it is deprecated; use tool_choice", ("none", "auto")),
    "modalities": Refusal("answers are text", (["text"],)),
    "audio": Refusal("answers are text"),
    "web_search_options": Refusal("web search is not supported"),
    "verbosity": Refusal("put it into a message", ("medium",)),
    "chat_template": Refusal("messages are rendered with the chat template of the model's folder"),
    "documents": Refusal("put them into a message", ([],)),
    "add_special_tokens": Refusal("the chat template writes them", (False,)),
}

REFUSED_IN_COMPLETIONS: dict[str, Refusal] = {
    **REFUSED,
    "add_special_tokens": Refusal("send token ids to add no special tokens", (True,)),
}

Prompts = Annotated[
    str
    | Annotated[list[str], STOP_AT_FIRST_ERROR]
    | Ids
    | Annotated[list[Ids], STOP_AT_FIRST_ERROR],
    one_error("a string, a list of strings, a list of token ids, or a list of such lists"),
]  # fmt: skip


def _none_if_false(value: Any) -> Any:
    """Clients of chats say so that they want none."""
    return None if value is False else value


class CompletionBody(ToldFields, TextBody):
    """Body of ``POST /v1/completions``."""

    refused = REFUSED_IN_COMPLETIONS

    prompt: Prompts
    """A text with at least one token, token ids of the model, or a list that must contain at least one of these."""
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int | None, BeforeValidator(_none_if_false)] = None


class AllowedNames(LenientModel):
    """The tools that a ``tool_choice`` narrows the tools to."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], STOP_AT_FIRST_ERROR]


class AllowedTools(LenientModel):
    """A ``tool_choice`` that narrows the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedNames


ToolChoice = Annotated[
    Literal["none", "auto", "required"] | NamedTool | AllowedTools,
    one_error(
        '"none", "auto", "required", {"type": "function", "function": {"name": ...}} or {"type": "allowed_tools", '
        '"allowed_tools": {"mode": ..., "tools": [...]}}'
    ),
]


class ChatBody(ToldFields, ConversationBody):
    """Body of ``POST /v1/chat/completions``."""

    refused = REFUSED_IN_CHAT

    messages: Annotated[list[ChatMessage], STOP_AT_FIRST_ERROR, NOT_EMPTY]
    """1 to 1024 entries; a part of the type text must be a text block with a text field."""
    tools: Annotated[list[Tool], STOP_AT_FIRST_ERROR] | None = None
    """The model may call them if its chat template has tool calls in a format that the server supports. To force a call
    of any model, set tool_choice to required or to a function. Tool names must be unique: no two tools are named
    alike."""
    tool_choice: ToolChoice | None = None
    """A choice that asks for a call needs tools, and a name must name one of the tools."""
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    """False leaves reasoning out of the answer."""
    reasoning_format: Literal["auto", "deepseek", "none"] | None = None
    """llama.cpp's: with "none" reasoning is not looked for and stays in the content."""
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """As far as the model's chat template lets it be chosen."""
    echo: bool | None = None
    """Begin the answer with the text of the last message if it is the assistant's."""
    add_generation_prompt: bool | None = None
    """False: the chat template does not begin the answer's turn."""
    continue_final_message: bool | None = None
    """The answer continues the last message, whose turn stays open."""
