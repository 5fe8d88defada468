"""The bodies of requests: names and types. Ranges, and what fits a model, are checked where the model is known."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from server.serving.options.table import GenerateOptions
from server.serving.options.types import NOT_EMPTY
from server.serving.strict_model import STOP_AT_FIRST_ERROR, StrictModel, one_error

__all__ = [
    "AT_LEAST_1",
    "NOT_EMPTY",
    "STOP_AT_FIRST_ERROR",
    "GenerateParameters",
    "GenerateRequest",
    "Ids",
    "NullOnly",
    "StrictModel",
    "TextOrTexts",
    "Texts",
    "one_error",
]

AT_LEAST_1 = Field(json_schema_extra={"minimum": 1})
"""For the documentation only: what else is refused where the model is known."""
TextOrTexts = Annotated[
    str | Annotated[list[str], STOP_AT_FIRST_ERROR, NOT_EMPTY], one_error("a string or a list of strings")
]


NullOnly = Annotated[Any, WithJsonSchema({"type": "null"})]
"""A field that is refused by name."""
Ids = Annotated[list[int], STOP_AT_FIRST_ERROR]
Texts = Annotated[list[str], STOP_AT_FIRST_ERROR]


class GenerateParameters(GenerateOptions):
    """How the text is generated.

    Names are transformers' `GenerationConfig`'s, then Text Generation Inference's.
    """


class Message(StrictModel):
    """One turn of a conversation."""

    role: str
    content: str


class GenerateRequest(StrictModel):
    """Body of ``POST /generate``: a prompt as text, as a template with its variables, or as a conversation."""

    inputs: TextOrTexts | None = None
    """A text, or a list that must contain at least one text. inputs is required, or a template, or messages."""
    template: str | None = None
    """The name of a template of this server, or name@version. A request has only one prompt."""
    variables: dict[str, Any] | None = None
    """Values for the template's variables."""
    examples: Annotated[list[dict[str, Any]], STOP_AT_FIRST_ERROR] | None = None
    """Examples for the template, where it takes some."""
    messages: Annotated[list[Message], STOP_AT_FIRST_ERROR] | None = None
    """A conversation of 1 to 1024 entries, for models that have a chat template. A request has only one prompt."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the model's chat template; set messages, or leave it out."""
    chat_template: NullOnly = None
    """Not supported: messages are rendered with the chat template of the model's folder."""
    parameters: GenerateParameters | None = None
    cache_salt: str | None = None
    """Prompts of different salts never share cached tokens."""
    stream: bool | None = None
    """Send each token as a server-sent event. Only a single input can be streamed."""
    model: str | None = None
    """The name of a served model; without it the first that generates."""

    def fields(self) -> dict[str, Any]:
        """The fields beside the parameters that the client sent."""
        return {name: value for name, value in self if value is not None and name not in ("parameters", "model")}
