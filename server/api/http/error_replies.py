"""The one shape of every error that leaves the server, whichever layer found it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server.api.http.errors import MalformedRequest, MethodNotAllowed, PathNotFound
from server.api.http.validation import from_pydantic
from server.errors import SluiceError
from server.serving.record import RequestRecord

MAX_MESSAGE_CHARACTERS = 1024
OPENAI_PATHS = "/v1/"
"""Below it a body that cannot be honoured is a 400, as OpenAI's clients expect."""
OF_THE_ROUTER: dict[int, Callable[[], SluiceError]] = {404: PathNotFound, 405: MethodNotAllowed}


ANTHROPICS_PATHS = ("/v1/messages", "/v1/messages/count_tokens")
"""Their errors have Anthropic's envelope and types; our own fields stand beside them."""
ANTHROPICS_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""By status; of the others those below 500 are ``invalid_request_error`` and the rest ``api_error``."""


def error_body(error: SluiceError, request_id: str, path: str = "") -> bytes:
    """The JSON body in the dialect of the path, ASCII."""
    param = error.param
    fields = {
        "message": error.message[:MAX_MESSAGE_CHARACTERS],
        "type": error.type,
        "param": param and param[:MAX_MESSAGE_CHARACTERS],
        "code": error.code,
        "request_id": request_id,
    }
    body = {"error": fields, "error_type": error_type(error)}
    if path in ANTHROPICS_PATHS:
        fields["type"] = anthropics_type(error)
        body = {"type": "error", **body, "request_id": request_id}
    return json.dumps(body).encode()


def anthropics_type(error: SluiceError) -> str:
    return ANTHROPICS_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")


def error_type(error: SluiceError) -> str:
    """In the words of Text Generation Inference, whose clients choose an exception by it."""
    if error.status in (429, 503):
        return "overloaded"
    return "generation" if error.status >= 500 else "validation"


def error_reply(error: SluiceError, record: RequestRecord, headers: Mapping[str, str] | None = None) -> Response:
    """The HTTP answer, noted in the request's record."""
    record.error_code = error.code
    error.reader = record.reader
    found = {**error_headers(error), **(headers or {}), "Cache-Control": "no-store"}
    body = error_body(error, record.public_id, record.route)
    return Response(body, error.status, found, media_type="application/json")


def error_headers(error: SluiceError) -> dict[str, str]:
    """Whether and when the request may be sent again."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    return headers


def install(app: FastAPI) -> None:
    """Answer with the one shape whatever a handler, the router or the body's validation raises."""
    app.add_exception_handler(SluiceError, _on_sluice_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)


async def _on_sluice_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SluiceError)
    reply = error_reply(error, request.state.record)
    reply.status_code = status_at(request.scope["path"], reply.status_code)
    return reply


def status_at(path: str, status: int) -> int:
    """An error's status in the dialect of the path."""
    return 400 if status == 422 and path.startswith(OPENAI_PATHS) else status


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _on_sluice_error(request, from_pydantic(error.errors(), _body_class(request)))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """The router's own: no such path, no such method."""
    assert isinstance(error, HTTPException)
    make = OF_THE_ROUTER.get(error.status_code)
    found = MalformedRequest("The server could not answer the request.") if make is None else make()
    return error_reply(found, request.state.record, error.headers)


def _body_class(request: Request) -> type[BaseModel] | None:
    """The schema of the matched route's body."""
    field = getattr(request.scope.get("route"), "body_field", None)
    annotation = field.field_info.annotation if field is not None else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
