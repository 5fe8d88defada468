"""Errors about inputs and outputs that are longer than they may be.

InvalidRequest
|-- InputTooLong            422  context_length_exceeded
|   |-- PromptTooLong       422  context_length_exceeded
|   `-- RequestTooLong      422  context_length_exceeded
|-- OutputTooLong           422  context_length_exceeded
`-- BatchTooLarge           413  batch_too_large
"""

from __future__ import annotations

from server.errors import InvalidRequest
from server.sentences import Field, Words, sentence

CONTEXT = "this model's maximum context length is {limit} tokens"
"""Clients tell an input that is too long by these words."""


class InputTooLong(InvalidRequest):
    """More tokens than the model takes."""

    code = "context_length_exceeded"
    template = f"The input has {{num_tokens}} tokens and {CONTEXT}, so it is too long. {{advice}}"

    def __init__(
        self, num_tokens: int, limit: int, advice: Words, *, param: str = "inputs", is_least: bool = False
    ) -> None:
        """``is_least``: the input has ``num_tokens`` or more, which nobody has counted."""
        number = f"at least {num_tokens}" if is_least else num_tokens
        super().__init__(
            sentence(self.template, num_tokens=number, limit=limit, most=limit - 1, advice=advice), param=param
        )


class PromptTooLong(InputTooLong):
    """A prompt that leaves no room for an output."""

    # The last words are those that Anthropic's clients look for.
    template = (
        f"The input has {{num_tokens}} tokens and {CONTEXT}, at most {{most}} of them for the input: "
        "the prompt is too long. {advice}"
    )


class RequestTooLong(InputTooLong):
    """More tokens than the server reads for one request."""

    template = "The input has {num_tokens} tokens and a request may have at most {limit}. {advice}"


class OutputTooLong(InvalidRequest):
    """More new tokens than the model's context leaves room for after the prompt."""

    code = "context_length_exceeded"

    def __init__(self, name: str, value: int, *, limit: int, num_tokens: int) -> None:
        words = sentence(
            f"{{name}} is {{value}}: it must be at most {{room}}, since {CONTEXT} and the input has {{num_tokens}}.",
            name=Field(name),
            value=value,
            room=limit - num_tokens,
            limit=limit,
            num_tokens=num_tokens,
        )
        super().__init__(words, param=name)


class BatchTooLarge(InvalidRequest):
    """More inputs in one request than the server's limit."""

    status = 413
    code = "batch_too_large"

    def __init__(self, num_inputs: int, limit: int, unit: str = "inputs", *, is_least: bool = False) -> None:
        """``unit``: what one of them is to the client, in the plural. ``is_least``: there are that many or more."""
        number = f"at least {num_inputs}" if is_least else num_inputs
        super().__init__(
            f"The request has {number} {unit} and the limit is {limit}. Send them in several requests.",
            param="inputs",
        )
