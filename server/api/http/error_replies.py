"""Every error that becomes an HTTP answer, whichever layer found it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from server.api.http.dialect import Dialect, written
from server.api.http.errors import MalformedRequest, MethodNotAllowed, PathNotFound
from server.api.http.validation import from_pydantic
from server.errors import SluiceError
from server.serving.record import RequestRecord

OF_THE_ROUTER: dict[int, Callable[[], SluiceError]] = {404: PathNotFound, 405: MethodNotAllowed}


def error_reply(error: SluiceError, scope: Scope, headers: Mapping[str, str] | None = None) -> Response:
    """The answer in the dialect of the request's path, noted in its record."""
    record: RequestRecord = scope["state"]["record"]
    dialect: Dialect = scope["state"]["dialect"]
    record.error_code = error.code
    error.reader = record.reader
    found = {**error_headers(error), **(headers or {}), "Cache-Control": "no-store"}
    body = written(dialect.error(error, record.public_id))
    return Response(body, dialect.status_at(error.status), found, media_type="application/json")


def error_headers(error: SluiceError) -> dict[str, str]:
    """Whether and when the request may be sent again."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    return headers


def install(app: FastAPI) -> None:
    """Answer with the dialect's shape whatever a handler, the router or the body's validation raises."""
    app.add_exception_handler(SluiceError, _on_sluice_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)


async def _on_sluice_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SluiceError)
    return error_reply(error, request.scope)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_reply(from_pydantic(error.errors(), _body_class(request)), request.scope)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """The router's own: no such path, no such method."""
    assert isinstance(error, HTTPException)
    make = OF_THE_ROUTER.get(error.status_code)
    found = MalformedRequest("The server could not answer the request.") if make is None else make()
    return error_reply(found, request.scope, error.headers)


def _body_class(request: Request) -> type[BaseModel] | None:
    """The schema of the matched route's body."""
    field = getattr(request.scope.get("route"), "body_field", None)
    annotation = field.field_info.annotation if field is not None else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
