"""``/openapi.json``: FastAPI's document, completed so that it says all that the server takes and sends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.api.http.access import is_open
from server.api.http.dialect import SLUICE, Dialect
from server.api.openapi import bodies, errors, replies

FASTAPI_ERRORS = ("HTTPValidationError", "ValidationError")
"""What FastAPI documents for every body, and this server never sends."""


def document(app: FastAPI, dialects: Mapping[str, Dialect], *, has_keys: bool) -> dict[str, Any]:
    """OpenAPI 3.1."""
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = found["components"]["schemas"]
    for name in FASTAPI_ERRORS:
        schemas.pop(name, None)
    bodies.complete(schemas)
    schemas |= {reply["title"]: reply for reply in errors.REPLIES} | replies.components()
    for path, item in found["paths"].items():
        for method, operation in item.items():
            _complete(operation, method, path, dialects.get(path, SLUICE), schemas, has_keys=has_keys)
    if has_keys:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return found


def _complete(
    operation: dict[str, Any], method: str, path: str, dialect: Dialect, schemas: dict[str, Any], *, has_keys: bool
) -> None:
    needs_key = has_keys and not is_open(method.upper(), path)
    if needs_key:
        operation["security"] = [{"key": []}]
    if "requestBody" in operation:
        operation["requestBody"]["description"] = bodies.STRICT_JSON
        if dialect.form is not None:
            bodies.add_form(operation["requestBody"], dialect.form, schemas)
    ok = replies.success(path, dialect, operation["responses"]["200"])
    operation["responses"] = {"200": ok, **errors.error_responses(method, path, dialect, needs_key=needs_key)}
