"""What the bodies of the OpenAI and Anthropic text routes share: fields, our options, and the names of vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from server.api.bodies.fields import LenientModel, Refusal
from server.api.bodies.schemas import (
    STOP_AT_FIRST_ERROR,
    GenerateParameters,
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
    """The base of these bodies: every option of ours, and the fields of OpenAI and vLLM that mean the same."""

    model_config = ConfigDict(extra="allow")
    own_names: ClassVar[Mapping[str, str]] = {
        "max_new_tokens": "max_tokens",
        "min_new_tokens": "min_tokens",
        "truncate": "truncate_prompt_tokens",
    }
    """The dialect's names of our options: errors use them where the client sent no other."""

    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    min_tokens: int | None = None
    truncate_prompt_tokens: int | None = None
    stop_sequences: types.TextsOrOne | None = None
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


class ConversationBody(TextBody):
    """What the bodies that go by a chat template have."""

    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the template. Each value must be a string, a number, true or false."""


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
