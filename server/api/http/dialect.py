"""How a family of clients expects to be answered where a request cannot be honoured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from server.api.http.form_body import Form
from server.errors import SluiceError

MAX_MESSAGE_CHARACTERS = 1024


class Dialect:
    """The server's own ways. Other families' differ in some of the attributes."""

    names_unknown_fields = False
    """Whether unknown fields are left out and named in a header. Otherwise, and with the setting ``strict``, they are
    refused."""
    status_of_invalid = 422
    """Of a body that cannot be honoured."""
    has_status_routes = True
    """Whether /health and /info stand below each path too, where Hugging Face's client looks."""
    error_schema = "ErrorReply"
    """The name of the errors' shape in the OpenAPI document."""

    form: Form | None = None
    """What a form may hold on the path, where one may stand in place of JSON."""

    has_key_in_body = False
    """Whether the field ``api_key`` of a body is the API key of a request that has none in its headers."""

    def of_body(self, body: Any) -> Dialect:  # noqa: ARG002
        """The dialect of a request with this body, on a path that several share."""
        return self

    def of_form(self) -> Dialect:
        """The dialect of a request whose body is a form."""
        return self

    def of_unread(self) -> Dialect:
        """The dialect of a request whose body cannot be read."""
        return self

    def statuses_at(self, status: int) -> tuple[int, ...]:
        """What an error's own status may become on the path."""
        return (self.status_at(status),)

    def status_at(self, status: int) -> int:
        """An error's own status in the words of the dialect."""
        return self.status_of_invalid if status == 422 else status

    def error(self, error: SluiceError, request_id: str) -> dict[str, Any]:
        """The body of an error."""
        param = error.param
        fields = {
            "message": error.message[:MAX_MESSAGE_CHARACTERS],
            "type": error.type,
            "param": param and param[:MAX_MESSAGE_CHARACTERS],
            "code": error.code,
            "request_id": request_id,
        }
        return {"error": fields, "error_type": _error_type(error)}

    def error_event(self, body: Mapping[str, Any]) -> bytes:
        """The last event of a stream that breaks."""
        return b"event: error\ndata: " + written(body) + b"\n\n"


SLUICE = Dialect()


def written(error: Mapping[str, Any]) -> bytes:
    """An error as JSON, in ASCII."""
    return json.dumps(error).encode()


def _error_type(error: SluiceError) -> str:
    """In the words of Text Generation Inference, whose clients choose an exception by it."""
    if error.status in (429, 503):
        return "overloaded"
    return "generation" if error.status >= 500 else "validation"
