"""Body of ``POST /v1/messages``: Anthropic's fields, and what they are in the terms of OpenAI's chat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from server.api.bodies.fields import LenientModel, Refusal
from server.api.bodies.schemas import NOT_EMPTY, STOP_AT_FIRST_ERROR, one_error
from server.api.text.schemas import (
    NOT_TOLD,
    REFUSED,
    ConversationBody,
    JsonSchema,
    NamedFunction,
    NamedTool,
    ResponseFormat,
    Tool,
    ToolFunction,
)
from server.api.text.turn_plan import ToolWish
from server.errors import InvalidRequest
from server.serving.options.types import Texts

NO_TOOLS_OF_ITS_OWN = Refusal("the server does not run tools itself; send function tools", ([],))
REFUSED_HERE: dict[str, Refusal] = {
    **REFUSED,
    **NOT_TOLD,
    "mcp_servers": NO_TOOLS_OF_ITS_OWN,
    "container": NO_TOOLS_OF_ITS_OWN,
    "service_tier": Refusal("the server has only one service tier", ("auto", "standard_only")),
}


class TextBlock(LenientModel):
    """A part of a message that is text."""

    type: str
    text: str | None = None


TextContent = Annotated[
    str | Annotated[list[TextBlock], STOP_AT_FIRST_ERROR], one_error("a string or a list of text blocks")
]


FIELDS_OF_BLOCKS = {
    "text": {"text"},
    "thinking": {"thinking", "signature"},
    "tool_use": {"id", "name", "input"},
    "tool_result": {"tool_use_id", "content", "is_error"},
}
"""The fields that each type of block reads."""


class Block(TextBlock):
    """A part of a message: text, thinking, a call of a tool, or the result of one."""

    thinking: str | None = None
    signature: str | None = None
    """Of thinking: this server signs nothing and checks nothing."""
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: TextContent | None = None
    is_error: bool | None = None
    """The result is given to the model with "Error: " before it."""

    def unread(self) -> Iterable[str]:
        known = {"type", *FIELDS_OF_BLOCKS.get(self.type, ())}
        return (name for name in type(self).model_fields if name not in known and getattr(self, name) is not None)


Content = Annotated[str | Annotated[list[Block], STOP_AT_FIRST_ERROR], one_error("a string or a list of blocks")]


class AnthropicMessage(LenientModel):
    """One turn of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: Content


class AnthropicTool(LenientModel):
    """A function that the model may call; the server runs no tools of its own."""

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    """The input of a forced call always follows the schema."""


class AnthropicChoice(LenientModel):
    """How the model is to use the tools; ``any`` and ``tool`` force a call."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(LenientModel):
    """Whether the model reasons, as far as its chat template lets that be chosen."""

    type: Literal["enabled", "disabled", "adaptive"]
    display: Literal["summarized", "omitted"] | None = None
    """Thinking is returned whole, or not at all."""


class OutputFormat(LenientModel):
    """The structure of the answer."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(LenientModel):
    """How the answer is written."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class MessagesBody(ConversationBody):
    """Body of both routes. It also takes every option of /generate.

    n must be 1: a message returns one output. max_tokens is required for /v1/messages.
    """

    refused = REFUSED_HERE
    own_names: ClassVar[Mapping[str, str]] = {**ConversationBody.own_names, "stop": "stop_sequences"}

    messages: Annotated[list[AnthropicMessage], STOP_AT_FIRST_ERROR, NOT_EMPTY]
    """Turns that must end with the user's: an answer begins a turn of its own. Blocks of the type text have a text,
    those of the type thinking a thinking, of tool_use (assistant) an id, a name and an input, and of tool_result (user)
    a tool_use_id."""
    system: TextContent | None = None
    stop_sequences: Texts | None = None
    tools: Annotated[list[AnthropicTool], STOP_AT_FIRST_ERROR] | None = None
    """The model may call them if its chat template has tool calls in a format that the server supports. To force a call
    of any model, set tool_choice to any or to a tool. Tool names must be unique: no two tools are named alike."""
    tool_choice: AnthropicChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


CHOICES: dict[str, Literal["none", "auto", "required"]] = {"auto": "auto", "any": "required", "none": "none"}


def tool_wish(body: MessagesBody) -> ToolWish:
    tools = [
        Tool(
            type="function",
            function=ToolFunction(name=tool.name, description=tool.description, parameters=tool.input_schema),
        )
        for tool in body.tools or []
    ]
    choice = body.tool_choice
    if choice is None:
        return ToolWish(tools=tools)
    return ToolWish(tools=tools, choice=_chosen(choice), is_parallel=not choice.disable_parallel_tool_use)


def _chosen(choice: AnthropicChoice) -> Literal["none", "auto", "required"] | NamedTool:
    if (choice.name is None) == (choice.type == "tool"):
        rule = "is missing: the type tool requires it" if choice.name is None else "is only for the type tool"
        raise InvalidRequest(f"tool_choice.name {rule}.", param="tool_choice.name")
    if choice.name is None:
        return CHOICES[choice.type]
    return NamedTool(type="function", function=NamedFunction(name=choice.name))


def effort_of(body: MessagesBody) -> tuple[str | None, str]:
    """How much the model is to reason, and the field that says it."""
    if body.thinking is not None and body.thinking.type == "disabled":
        return "none", "thinking.type"
    if body.output_config is not None and body.output_config.effort is not None:
        return body.output_config.effort, "output_config.effort"
    is_enabled = body.thinking is not None and body.thinking.type == "enabled"
    return "medium" if is_enabled else None, "thinking.type"


def format_of(body: MessagesBody) -> ResponseFormat | None:
    """The structure as the other routes know it."""
    if body.output_config is None or body.output_config.format is None:
        return None
    return ResponseFormat(type="json_schema", json_schema=JsonSchema(schema=body.output_config.format.schema_))
