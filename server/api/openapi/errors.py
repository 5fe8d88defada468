"""The errors that an operation may answer, read from the tree of errors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from server.api.dialects.anthropic.dialect import ANTHROPIC, ERROR_TYPES
from server.api.dialects.libretranslate.dialect import LIBRETRANSLATE, TRANSLATE
from server.api.http import errors as http_errors
from server.api.http.dialect import Dialect
from server.availability_errors import Starting, Unavailable
from server.errors import ModelNotFound, SluiceError, TemplateNotFound

OF_BODIES = (http_errors.InvalidJson, http_errors.BodyTooLarge, http_errors.UnsupportedMediaType)
OF_KEYS = (http_errors.InvalidApiKey, http_errors.ScopeMissing, http_errors.TooManyWrongKeys)
OF_THE_ROUTER = (http_errors.PathNotFound, http_errors.MethodNotAllowed)
OF_READING: dict[str, tuple[type[SluiceError], ...]] = {
    "/readyz": (Unavailable,),
    "/startupz": (Starting,),
    "/health": (Unavailable,),
    "/templates/{name}": (TemplateNotFound,),
    "/v1/models": (Starting,),
    "/v1/models/{name}": (ModelNotFound, Starting),
    "/tokenizer_info": (ModelNotFound, Starting),
    "/languages": (Starting,),
}
"""What a GET may answer beside errors of HTTP. A POST may answer every error."""
HEADERS: dict[str, dict[str, str]] = {
    "401": {"WWW-Authenticate": "Bearer"},
    "429": {"Retry-After": "Seconds to wait before a retry."},
    "503": {"Retry-After": "Seconds to wait before a retry."},
    "415": {"Accept-Encoding": "identity, where the body was compressed."},
}
RETRY = "Whether a retry may succeed, if known."
REQUEST_ID = "The request's id in the server's log."
ERROR_REPLY: dict[str, Any] = {
    "title": "ErrorReply",
    "type": "object",
    "description": "The error of every route. A stream that fails ends with it.",
    "required": ["error", "error_type"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code", "request_id"],
            "properties": {
                "message": {"type": "string", "description": "What is wrong and what to do."},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field that is wrong, as a path."},
                "code": {"type": "string", "description": "A code for programs."},
                "request_id": {"type": "string", "description": REQUEST_ID},
            },
        },
        "error_type": {
            "enum": ["validation", "generation", "overloaded"],
            "description": "As in Text Generation Inference.",
        },
    },
}

ANTHROPICS_REPLY: dict[str, Any] = {
    "title": ANTHROPIC.error_schema,
    "description": "An error in Anthropic's shape, with the fields of all other errors.",
    "allOf": [
        {"$ref": "#/components/schemas/ErrorReply"},
        {
            "type": "object",
            "required": ["type", "request_id"],
            "properties": {
                "type": {"const": "error"},
                "request_id": {"type": "string", "description": REQUEST_ID},
                "error": {
                    "properties": {
                        "type": {"enum": [*ERROR_TYPES.values(), "invalid_request_error", "api_error"]},
                    }
                },
            },
        },
    ],
}

LIBRETRANSLATES_REPLY: dict[str, Any] = {
    "title": LIBRETRANSLATE.error_schema,
    "type": "object",
    "description": "An error in LibreTranslate's shape.",
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "What is wrong and what to do."}},
}
TRANSLATES_REPLY: dict[str, Any] = {
    "title": TRANSLATE.error_schema,
    "description": "The error of every route, or LibreTranslate's where the body has q or cannot be read.",
    "anyOf": [
        {"$ref": "#/components/schemas/ErrorReply"},
        {"$ref": f"#/components/schemas/{LIBRETRANSLATE.error_schema}"},
    ],
}
REPLIES = (ERROR_REPLY, ANTHROPICS_REPLY, LIBRETRANSLATES_REPLY, TRANSLATES_REPLY)
"""The shapes of errors."""


def error_responses(method: str, path: str, dialect: Dialect, *, needs_key: bool) -> dict[str, Any]:
    """OpenAPI's responses for all errors that the operation may answer, by status."""
    by_status: dict[str, set[type[SluiceError]]] = defaultdict(set)
    for error in _errors(method, path, needs_key):
        for status in dialect.statuses_at(error.status):
            by_status[str(status)].add(error)
    return {status: _response(status, by_status[status], dialect.error_schema) for status in sorted(by_status)}


def _errors(method: str, path: str, needs_key: bool) -> Iterator[type[SluiceError]]:
    for error in tree(SluiceError):
        if issubclass(error, OF_KEYS):
            is_possible = needs_key
        elif issubclass(error, OF_THE_ROUTER):
            is_possible = error is http_errors.PathNotFound and "{" in path
        elif method == "post" or error is SluiceError:
            is_possible = True
        elif error.__module__ == http_errors.__name__:
            is_possible = not issubclass(error, OF_BODIES)
        else:
            is_possible = issubclass(error, OF_READING.get(path, ()))
        # A class without a code of its own only holds others together.
        if is_possible and ("code" in vars(error) or not error.__subclasses__()):
            yield error


def tree(error: type[SluiceError]) -> Iterator[type[SluiceError]]:
    """The class and all below it."""
    yield error
    for below in error.__subclasses__():
        yield from tree(below)


def _response(status: str, errors: set[type[SluiceError]], reply: str) -> dict[str, Any]:
    lines = sorted(f"- `{error.code}`: {(error.__doc__ or '').partition(chr(10))[0]}" for error in errors)
    codes = sorted({error.code for error in errors})
    headers = {"X-Request-Id": REQUEST_ID, **HEADERS.get(status, {})}
    if any(error.should_retry is not None for error in errors):
        headers["x-should-retry"] = RETRY
    return {
        "description": "\n".join(lines),
        "headers": {name: {"description": words, "schema": {"type": "string"}} for name, words in headers.items()},
        "content": {
            "application/json": {
                "schema": {
                    "allOf": [
                        {"$ref": f"#/components/schemas/{reply}"},
                        {"properties": {"error": {"properties": {"code": {"enum": codes}}}}},
                    ]
                }
            }
        },
    }
