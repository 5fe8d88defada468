"""Every error a user can cause or see, with its HTTP status and code.

`length_errors.py` has those of lengths, `availability_errors.py` those of a full, starting or stopping server,
`api/http/errors.py` those of HTTP itself.

SluiceError                     500  internal_error
|-- InvalidRequest              422  invalid_value
|   |-- InvalidParameter        422  invalid_value (names the field)
|   |-- UnknownParameter        422  unknown_parameter
|   |-- ConflictingParameters   422  unsupported_value
|   |   `-- WithoutEffect       422  unsupported_value
|   |-- UnsupportedParameter    422  unsupported_value
|   |-- UnsupportedGrammar      422  unsupported_value
|   |-- NoTokenLeft             422  no_token_left
|   |-- SandboxFailure          422  unsupported_value
|   |   `-- SandboxTimeout      422  unsupported_value
|   `-- BatchTooLarge           413  batch_too_large
|-- ModelNotFound               404  model_not_found
|-- TemplateNotFound            404  template_not_found
|-- DeadlineExceeded            504  deadline_exceeded
|-- RequestQuarantined          500  request_quarantined
|-- NumericalError              500  numerical_error
|-- InsufficientMemory          500  insufficient_memory
|-- OutputDiverged              500  output_diverged
|-- ServerShutdown              503  server_shutdown
`-- ConfigurationError               ends the process with ``exit_code``

A message is plain words and a whole sentence: the field, the value, the limit, and what to do. It never
holds a path, a class name or a stack trace (configuration errors may name a path: the operator reads them).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, ClassVar

from server.sentences import Field, Reader, Words, echo, listed, sentence


class SluiceError(Exception):
    """Base of all errors that become an HTTP answer."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"
    should_retry: ClassVar[bool | None] = None
    """Value of the ``x-should-retry`` header, which clients obey before anything else."""

    def __init__(self, words: Words, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__()
        self.words = words
        self.field = param
        """By our name; None where it is no field's fault."""
        self.retry_after_s = retry_after_s
        self.reader = Reader()
        """Set when the error is sent."""

    def __str__(self) -> str:
        return self.message

    @property
    def message(self) -> str:
        """The sentence, in the reader's names."""
        return self.words if isinstance(self.words, str) else self.words.written(self.reader.names)

    @property
    def param(self) -> str | None:
        """The field's path, as the reader writes it."""
        return None if self.field is None else self.reader.path(self.field)


class InvalidRequest(SluiceError):
    """The request is understood and cannot be honoured."""

    status = 422
    code = "invalid_value"
    type = "invalid_request_error"


class InvalidParameter(InvalidRequest):
    """One field has a value outside its range."""

    def __init__(self, name: str, value: Any, rule: Words) -> None:
        words = sentence("{name} is {value}: it {rule}.", name=Field(name), value=echo(value), rule=rule)
        super().__init__(words, param=name)


class UnknownParameter(InvalidRequest):
    """A field that this route does not have; the message names the nearest first."""

    code = "unknown_parameter"

    def __init__(self, name: str, known: list[str]) -> None:
        near = difflib.get_close_matches(name.rpartition(".")[2][:64], known, n=5)
        fields = ", ".join([*near, *(field for field in known if field not in near)])
        super().__init__(f"{echo(name)} is not a field of this request. The fields are: {fields}.", param=name)


class ConflictingParameters(InvalidRequest):
    """Two fields that cannot be honoured together."""

    code = "unsupported_value"
    both = "{first} and {second} cannot be combined: {reason}."
    alone = "{first} cannot be applied: {reason}."

    def __init__(self, first: str, second: str, reason: Words, *, is_second_sent: bool = True) -> None:
        """A second field that nobody sent is not named: its default is what the first conflicts with."""
        template = self.both if is_second_sent else self.alone
        super().__init__(sentence(template, first=Field(first), second=Field(second), reason=reason), param=first)
        self.fields = (first, second)


class WithoutEffect(ConflictingParameters):
    """A field that would be ignored unless another changes."""

    both = "{first} has no effect with this {second}: {reason}."
    alone = "{first} has no effect: {reason}."


class UnsupportedParameter(InvalidRequest):
    """A field that peers know and this server cannot honour."""

    code = "unsupported_value"

    def __init__(self, name: str, reason: Words) -> None:
        words = sentence("{name} is not supported here: {reason}.", name=Field(name), reason=reason)
        super().__init__(words, param=name)


class SandboxFailure(InvalidRequest):
    """What the client sent was refused by a function in the sandbox, or ended its process."""

    code = "unsupported_value"


class SandboxTimeout(SandboxFailure):
    """What the client sent would take longer than it may."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"It exceeds the time limit of {limit_s:g} s. Send something smaller or simpler.")


class UnsupportedGrammar(InvalidRequest):
    """A grammar that cannot be compiled, costs too much, or that no output can follow."""

    code = "unsupported_value"

    def __init__(self, words: Words) -> None:
        super().__init__(words, param="grammar")


class NoTokenLeft(InvalidRequest):
    """The rules of a request together forbid every token at some place of the output."""

    code = "no_token_left"

    def name_fields(self, names: Sequence[str]) -> None:
        """Tell whose rules they are."""
        if names:
            template = "{said}. These options forbid tokens: {names}."
            self.words = sentence(template, said=self.message.rstrip("."), names=listed(names))


class ModelNotFound(SluiceError):
    """No model of that name serves this task."""

    status = 404
    code = "model_not_found"
    type = "invalid_request_error"

    def __init__(self, name: str | None, task: str, served: list[str]) -> None:
        if served:
            message = f"No model named {echo(name)} is served for {task}. Served: {', '.join(served)}."
        else:
            message = f"This server has no model for {task}."
        super().__init__(message, param="model" if name is not None else None)


class TemplateNotFound(SluiceError):
    """No template of that name and version."""

    status = 404
    code = "template_not_found"
    type = "invalid_request_error"

    def __init__(self, reference: str, known: list[str]) -> None:
        there_are = f"Available: {', '.join(known)}." if known else "This server has no templates."
        super().__init__(f"There is no template {echo(reference)}. {there_are}", param="template")


class DeadlineExceeded(SluiceError):
    """The time limit passed before the first token."""

    status = 504
    code = "deadline_exceeded"
    type = "timeout_error"

    def __init__(self, words: Words = "The time limit passed before the first token.") -> None:
        super().__init__(words)


class RequestQuarantined(SluiceError):
    """The request was in the batch each time the worker died."""

    code = "request_quarantined"
    should_retry = False


class NumericalError(SluiceError):
    """The model's output for this request was not finite."""

    code = "numerical_error"
    should_retry = False


class InsufficientMemory(SluiceError):
    """The request does not fit the cache even alone."""

    code = "insufficient_memory"
    should_retry = False


class OutputDiverged(SluiceError):
    """A beam search that was begun anew after the worker's death did not find again what had been delivered of it."""

    code = "output_diverged"
    should_retry = True

    def __init__(self) -> None:
        super().__init__(
            "The model's process crashed during the beam search, and the repeated search differs from what was already "
            "sent. Send the request again."
        )


class ServerShutdown(SluiceError):
    """The drain time ended before the request did."""

    status = 503
    code = "server_shutdown"
    type = "unavailable_error"


class ConfigurationError(Exception):
    """The server cannot start as configured. The message's last words say what to do."""

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


EXIT_CONFIG = 2
EXIT_PORT = 3
EXIT_MODEL = 4
EXIT_CRASH_LOOP = 5
EXIT_INTERNAL = 70
EXIT_IO = 74
"""A file cannot be read or written."""

FAILURES: dict[str, type[SluiceError]] = {
    error.code: error
    for error in (
        SluiceError,
        DeadlineExceeded,
        RequestQuarantined,
        NumericalError,
        InsufficientMemory,
        UnsupportedGrammar,
        NoTokenLeft,
    )
}
"""What a worker's ``Failed.code`` becomes on the front's side."""
