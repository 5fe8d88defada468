"""The API key of a request whose dialect has it in the body. Nobody is known yet, so little is read."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from server.api.http.body_value import form_of, value_of
from server.errors import SluiceError

KEY_FIELD = "api_key"
MAX_KEY_BODY_BYTES = 64 * 1024
"""Of a body that may hold a key. Longer ones need it in a header."""


async def read_key(scope: Scope, headers: Headers, receive: Receive) -> tuple[str | None, Receive]:
    """The key, if a sound body has one, and a channel that gives again what was read.

    The request is answered in the dialect of its body from here on.
    """
    messages: list[Message] = []

    async def replay() -> Message:
        return messages.pop(0) if messages else await receive()

    state = scope["state"]
    try:
        form = form_of(headers, state["dialect"])
    except SluiceError:
        return None, receive
    if form is not None:
        state["dialect"] = state["dialect"].of_form()
    body = await _read(headers, receive, messages)
    if body is None:
        return None, replay
    try:
        value = value_of(body, form)
    except SluiceError:
        return None, replay
    state["dialect"] = state["dialect"].of_body(value)
    key = value.get(KEY_FIELD) if isinstance(value, dict) else None
    return key if isinstance(key, str) and key else None, replay


async def _read(headers: Headers, receive: Receive, messages: list[Message]) -> bytes | None:
    """The body, whose messages are put into ``messages``; None where it is too long."""
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > MAX_KEY_BODY_BYTES:
        return None
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect()
        messages.append(message)
        body += message.get("body", b"")
        if len(body) > MAX_KEY_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return bytes(body)
