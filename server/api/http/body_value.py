"""What a body holds, read by its media type: JSON on every path, and a form where the path's dialect has one."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers

from server.api.http.dialect import Dialect
from server.api.http.errors import UnsupportedEncoding, UnsupportedMediaType
from server.api.http.form_body import FORM_TYPE, Form
from server.api.http.json_body import strict_json

JSON_TYPE = "application/json"


def form_of(headers: Headers, dialect: Dialect) -> Form | None:
    """The form that the body is; None for JSON. Raises `UnsupportedMediaType`.

    A browser sends forms from any site without asking the server first, so a form from a page is refused.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedEncoding("The body is compressed. Send it without Content-Encoding.")
    media_type, _, parameters = headers.get("content-type", "").partition(";")
    media_type = media_type.strip().lower()
    form = dialect.form if media_type == FORM_TYPE else None
    if media_type != JSON_TYPE and form is None:
        form_too = f" or a form, with {FORM_TYPE}" if dialect.form else ""
        raise UnsupportedMediaType(f"The body must be JSON, with Content-Type: {JSON_TYPE}{form_too}.")
    charset = parameters.replace(" ", "").replace('"', "").lower()
    if charset not in ("", "charset=utf-8", "charset=utf8"):
        what = "JSON" if form is None else "A form"
        raise UnsupportedMediaType(f"{what} must be UTF-8: remove the charset from Content-Type.")
    if form is not None and "origin" in headers:
        raise UnsupportedMediaType(f"Web pages must send JSON, with Content-Type: {JSON_TYPE}.")
    return form


def value_of(body: bytes, form: Form | None) -> Any:
    """Raises `InvalidJson`, or `InvalidRequest` for a form."""
    return strict_json(body) if form is None else form.read(body)
