"""Body of ``POST /v1/responses``: OpenAI's newer fields, and what they are in the terms of the chat."""

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
    TextPart,
    Tool,
    ToolFunction,
)
from server.api.text.turn_plan import ToolWish, allowed_tools

NOT_STORED = Refusal("the server stores nothing; send the whole conversation as input")
REFUSED_HERE: dict[str, Refusal] = {
    **REFUSED,
    **NOT_TOLD,
    "previous_response_id": NOT_STORED,
    "conversation": NOT_STORED,
    "prompt": NOT_STORED,
    "background": Refusal("background responses are not supported", (False,)),
    "max_tool_calls": Refusal("the server does not run tools itself"),
    # Reasoning is returned as text, and clients can send the same text back.
    "include": Refusal("the server has no additional output", ([], ["reasoning.encrypted_content"])),
    "top_logprobs": Refusal("use logprobs of /v1/chat/completions", (0,)),
    "truncation": Refusal("set truncate_prompt_tokens", ("disabled",)),
}


class OutputPart(TextPart):
    """A part of a message, as input or as an earlier answer had it."""

    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None

    def unread(self) -> Iterable[str]:
        return (name for name in ("annotations", "logprobs") if getattr(self, name))


FIELDS_OF_ITEMS = {
    "message": {"role", "content"},
    "reasoning": {"content", "summary"},
    "function_call": {"call_id", "name", "arguments"},
    "function_call_output": {"call_id", "output"},
}
"""The fields that each type of item reads. Every item may have the id and the status that an answer gave it."""


class InputItem(LenientModel):
    """One item of a conversation: a message, reasoning, a call of a function, or the result of one."""

    type: str | None = None
    """message (default), reasoning, function_call or function_call_output. An item of each type requires its fields: a
    message role and content, a call name, arguments and call_id, a result call_id and output."""
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: (
        Annotated[str | Annotated[list[OutputPart], STOP_AT_FIRST_ERROR], one_error("a string or a list of text parts")]
        | None
    ) = None
    id: str | None = None
    status: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: (
        Annotated[str | Annotated[list[OutputPart], STOP_AT_FIRST_ERROR], one_error("a string or a list of text parts")]
        | None
    ) = None
    summary: list[OutputPart] | None = None

    def unread(self) -> Iterable[str]:
        others = set().union(*FIELDS_OF_ITEMS.values()) - FIELDS_OF_ITEMS.get(self.type or "message", set())
        return (name for name in type(self).model_fields if name in others and getattr(self, name) is not None)


class TextFormat(LenientModel):
    """The structure of the answer: here the schema's fields stand beside the type."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    """A label for the client's own use."""
    description: str | None = None
    """The model does not see it."""
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None
    """The output always follows the schema."""

    def unread(self) -> Iterable[str]:
        is_unread = {
            "description": self.description is not None,
            "schema": self.schema_ is not None and self.type != "json_schema",
        }
        return (name for name, unread in is_unread.items() if unread)


class TextConfig(LenientModel):
    """What ``text`` holds."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None
    """OpenAI's default: how long an answer is, a message has to say."""


class FunctionTool(LenientModel):
    """A function that the model may call; the server runs no tools of its own."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """Arguments of a forced call always follow the schema."""


class ChosenFunction(LenientModel):
    """A ``tool_choice`` that forces one call."""

    type: Literal["function"]
    name: str


class AllowedFunctions(LenientModel):
    """A ``tool_choice`` that narrows the tools."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[ChosenFunction]


Choice = Annotated[
    Literal["none", "auto", "required"] | ChosenFunction | AllowedFunctions,
    one_error('"none", "auto", "required", {"type": "function", "name": ...} or {"type": "allowed_tools", ...}'),
]


class ReasoningConfig(LenientModel):
    """How the model reasons."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["auto"] | None = None
    """Reasoning is returned whole, not summed up."""


class ResponsesBody(ConversationBody):
    """Body of ``POST /v1/responses``. It also takes every option of /generate.

    n must be 1: a response returns one output.
    """

    refused = REFUSED_HERE
    own_names: ClassVar[Mapping[str, str]] = {**ConversationBody.own_names, "max_new_tokens": "max_output_tokens"}

    input: Annotated[
        str | Annotated[list[InputItem], STOP_AT_FIRST_ERROR, NOT_EMPTY], one_error("a string or a list of items")
    ]
    """A text, or 1 to 1024 items of the type message (with role and content, whose parts are of the type input_text or
    output_text), function_call (with name and call_id), function_call_output (with call_id and output) or reasoning
    (with parts of the type reasoning_text or summary_text)."""
    instructions: str | None = None
    text: TextConfig | None = None
    tools: Annotated[list[FunctionTool], STOP_AT_FIRST_ERROR] | None = None
    """The model may call them if its chat template has tool calls in a format that the server supports. To force a call
    of any model, set tool_choice to required or to a function. Tool names must be unique: no two tools are named
    alike."""
    tool_choice: Choice | None = None
    """A choice that asks for a call needs tools, and a name must name one of the tools."""
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningConfig | None = None
    metadata: dict[str, str] | None = None


def tool_wish(body: ResponsesBody) -> ToolWish:
    """Raises for allowed tools that are not among the tools."""
    tools, choice = [_chat_tool(tool) for tool in body.tools or []], body.tool_choice
    if isinstance(choice, AllowedFunctions):
        tools = allowed_tools(tools, [tool.name for tool in choice.tools], "tool_choice.tools")
    return ToolWish(
        tools=tools,
        choice=_chat_choice(choice),
        is_parallel=body.parallel_tool_calls is not False,
    )


def _chat_tool(tool: FunctionTool) -> Tool:
    function = ToolFunction(name=tool.name, description=tool.description, parameters=tool.parameters)
    return Tool(type="function", function=function)


def _chat_choice(choice: Choice | None) -> Literal["none", "auto", "required"] | NamedTool | None:
    if isinstance(choice, ChosenFunction):
        return NamedTool(type="function", function=NamedFunction(name=choice.name))
    return choice.mode if isinstance(choice, AllowedFunctions) else choice


def format_of(body: ResponsesBody) -> ResponseFormat | None:
    """The structure as the other routes know it."""
    wanted = None if body.text is None else body.text.format
    if wanted is None:
        return None
    schema = JsonSchema(schema=wanted.schema_) if wanted.type == "json_schema" else None
    return ResponseFormat(type=wanted.type, json_schema=schema)


def effort_of(body: ResponsesBody) -> tuple[str | None, str]:
    """How much the model is to reason, and the field that says it."""
    return None if body.reasoning is None else body.reasoning.effort, "reasoning.effort"
