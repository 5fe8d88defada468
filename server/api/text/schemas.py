"""Bodies of ``/v1/chat/completions`` and ``/v1/completions``: OpenAI's fields, our options, and vLLM's names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from server.api.bodies.fields import LenientModel, Refusal
from server.api.bodies.schemas import (
    NOT_EMPTY,
    STOP_AT_FIRST_ERROR,
    GenerateParameters,
    Ids,
    NullOnly,
    Texts,
    one_error,
)
from server.serving.options import types


class StreamOptions(LenientModel):
    """What a stream tells besides its text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class StructuredOutputs(LenientModel):
    """vLLM's way to ask for a structure."""

    json_: Any = Field(None, alias="json")
    regex: str | None = None
    choice: Texts | None = None
    json_object: bool | None = None
    grammar: NullOnly = None
    """Not supported: set grammar: {type: lark, value: ...}."""


class JsonSchema(LenientModel):
    """What a ``response_format`` of the type ``json_schema`` holds."""

    name: str | None = None
    """A label for the client's own use."""
    description: str | None = None
    """The model does not see it."""
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None
    """The output always follows the schema."""

    def unread(self) -> Iterable[str]:
        return () if self.description is None else ("description",)


class ResponseFormat(LenientModel):
    """The structure of the answer; ``value`` is how Hugging Face's client sends a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    value: dict[str, Any] | None = None


class TextBody(LenientModel, GenerateParameters):
    """What both bodies have: every option of ours beside OpenAI's own fields, and vLLM's where they mean the same."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    min_tokens: int | None = None
    truncate_prompt_tokens: int | None = None
    cache_salt: str | None = None
    skip_special_tokens: bool | None = None
    """False: special tokens stand in the text, but for the one that ends it."""
    include_stop_str_in_output: bool | None = None
    """The text ends with the stop string or stop token that ended it."""
    stream: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: Texts | None = None


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


class ToldFields(LenientModel):
    """Fields for what answers made of choices tell beside their text."""

    stream_options: StreamOptions | None = None
    """Other answers have no use for it: JSON and streams of the newer routes always hold the usage."""
    return_token_ids: bool | None = None
    """Add ``token_ids`` to each choice, and ``prompt_token_ids`` once."""
    return_tokens_as_token_ids: bool | None = None
    """Log-probabilities call a token ``token_id:N``."""
    prompt_logprobs: int | None = None
    """Add the log-probability of each prompt token and of the N most likely tokens at its place; not for streams."""
    logprob_token_ids: types.Ids | None = None
    """With logprobs: the log-probabilities of these tokens at each place of the output, in this order and in place of
    those of the most likely tokens."""


class CompletionBody(ToldFields, TextBody):
    """Body of ``POST /v1/completions``."""

    prompt: Prompts
    """A text with at least one token, token ids of the model, or a list that must contain at least one of these."""
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int | None, BeforeValidator(_none_if_false)] = None


class TextPart(LenientModel):
    """A part of a message."""

    type: str
    text: str | None = None


class CalledFunction(LenientModel):
    """A call that an assistant made: the arguments are JSON as text."""

    name: str
    arguments: str | None = None


class MadeCall(LenientModel):
    """One of an assistant's calls in the history."""

    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunction


class ChatMessage(LenientModel):
    """One turn of a conversation."""

    role: str
    """``system``, ``developer``, ``user``, ``assistant``, ``tool``, or another that the chat template writes."""
    content: (
        Annotated[str | Annotated[list[TextPart], STOP_AT_FIRST_ERROR], one_error("a string or a list of parts")] | None
    ) = None
    name: str | None = None
    tool_calls: Annotated[list[MadeCall], STOP_AT_FIRST_ERROR] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    """What an assistant wrote before its answer."""
    reasoning: str | None = None
    """vLLM's newer name of the same."""

    def unread(self) -> Iterable[str]:
        has_both = bool(self.reasoning_content and self.reasoning)
        return ("reasoning",) if has_both and self.reasoning != self.reasoning_content else ()


class ToolFunction(LenientModel):
    """What the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """Arguments of a forced call always follow the schema."""


class Tool(LenientModel):
    """One entry of ``tools``."""

    type: Literal["function"]
    function: ToolFunction


class NamedFunction(LenientModel):
    """The function that is to be called."""

    name: str


class NamedTool(LenientModel):
    """A ``tool_choice`` that forces one call."""

    type: Literal["function"]
    function: NamedFunction


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


class ConversationBody(TextBody):
    """What the bodies that go by a chat template have."""

    chat_template_kwargs: dict[str, Any] | None = None


class ChatBody(ToldFields, ConversationBody):
    """Body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], STOP_AT_FIRST_ERROR, NOT_EMPTY]
    """1 to 1024 entries; a part of the type text must be a text block with a text field."""
    tools: Annotated[list[Tool], STOP_AT_FIRST_ERROR] | None = None
    """The model may call them if its chat template has tool calls of a form that is read here. Any model can make a
    call that tool_choice forces: required, or the name of a function."""
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


TOLD_OTHERWISE = {
    "details": "ask for logprobs",
    "top_n_tokens": "ask for logprobs",
    "decoder_input_details": "use echo and logprobs of /v1/completions",
    "return_full_text": "use echo of /v1/completions",
    "return_parameters": "ask /generate",
}
"""Our options for what is told, which these routes' answers have no place for, and what to do instead."""

REFUSED: dict[str, Refusal] = {
    "store": Refusal("nothing is stored", (False,)),
    "service_tier": Refusal("the server has only one service tier", ("auto", "default")),
    "prediction": Refusal("leave it out"),
    "use_beam_search": Refusal("set num_beams", (False,)),
    "guided_grammar": Refusal('set grammar: {"type": "lark", "value": ...}'),
    "guided_decoding_backend": Refusal("there is one", ("auto",)),
    "spaces_between_special_tokens": Refusal("special tokens have no text", (True,)),
    "logits_processors": Refusal("use the options for bias and bans", ([],)),
    "priority": Refusal("requests run in order of arrival", (0,)),
}
"""Fields of OpenAI's and vLLM's that would change the answer, and that no body has."""

NO_PLACE = "this route cannot return it; use /v1/chat/completions"
NOT_TOLD: dict[str, Refusal] = {
    "return_token_ids": Refusal(NO_PLACE, (False,)),
    "return_tokens_as_token_ids": Refusal(NO_PLACE, (False,)),
    "prompt_logprobs": Refusal(NO_PLACE),
}
"""`ToldFields`, for routes without them."""

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
