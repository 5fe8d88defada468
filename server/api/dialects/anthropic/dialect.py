"""Anthropic's ways."""

from __future__ import annotations

from typing import Any

from server.api.http.dialect import Dialect
from server.errors import SluiceError

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""By status; of the others those below 500 are ``invalid_request_error`` and the rest ``api_error``."""


class Anthropic(Dialect):
    names_unknown_fields = True
    status_of_invalid = 400
    has_status_routes = False
    error_schema = "MessagesErrorReply"

    def error(self, error: SluiceError, request_id: str) -> dict[str, Any]:
        """Anthropic's envelope and types; the fields of all other errors stand beside them."""
        body = super().error(error, request_id)
        body["error"]["type"] = error_type(error)
        return {"type": "error", **body, "request_id": request_id}


def error_type(error: SluiceError) -> str:
    return ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")


ANTHROPIC = Anthropic()
