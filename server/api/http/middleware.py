"""What every request passes: an id, a record, a sound body. Pure ASGI, so that streams and hang-ups pass untouched."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import caller
from server.api.http.addresses import canonical
from server.api.http.body_room import BodyRoom
from server.api.http.body_value import form_of, value_of
from server.api.http.client_address import TrustedProxies
from server.api.http.dialect import SLUICE, Dialect
from server.api.http.error_replies import error_reply
from server.api.http.errors import BodyTooLarge, UnsupportedEncoding, UnsupportedMediaType
from server.api.http.turns import Turns
from server.caller import Caller
from server.errors import SluiceError
from server.serving.lifecycle import Lifecycle
from server.serving.record import RequestRecord

log = logging.getLogger("sluice.api")

SOUND_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
UNKNOWN_ROUTE = "unknown"

LARGE_BODY_BYTES = 64 * 1024
"""Beyond it a body waits for room while it arrives, and is checked in a thread: the event loop has streams to serve."""


class RequestContext:
    """Gives each request one spelling of its address, its id and its record.

    The record is reported when the answer is complete or the client has left.

    The last resort as well: an exception that nothing answered becomes a plain 500, and its traceback a log line.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        lifecycle: Lifecycle,
        task_routes: Mapping[str, str | None],
        dialects: Mapping[str, Dialect],
        quiet_routes: Collection[str],
        proxies: TrustedProxies,
    ) -> None:
        self.app = app
        self.proxies = proxies
        self.lifecycle = lifecycle
        self.task_routes = task_routes
        self.dialects = dialects
        """By path; other paths are answered as the server's own."""
        self.quiet_routes = quiet_routes
        """Probes and pages: neither logged nor counted."""
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = canonical(scope)
        record = self._record(scope)
        state = scope.setdefault("state", {})
        state["record"], state["request_id"] = record, record.request_id
        state["dialect"] = self.dialects.get(scope["path"], SLUICE)
        if self.proxies and scope.get("client"):
            peer, port = scope["client"]
            scope["client"] = (self.proxies.client_of(peer, Headers(scope=scope)), port)
        caller.set_current(Caller.of_address((scope.get("client") or ("",))[0]))
        exchange = _Exchange(record, self.lifecycle, receive, send)
        # A path may be a page to those who look at it and take work from those who post.
        if scope["method"] != "POST" and scope["path"] in self.quiet_routes:
            await self._answer(scope, exchange)
            return
        with self.lifecycle.active():
            try:
                await self._turns.take()
                await self._answer(scope, exchange)
            finally:
                record.client_gone = exchange.client_gone
                record.report()

    def _record(self, scope: Scope) -> RequestRecord:
        request_id = secrets.token_hex(16)
        client_id = Headers(scope=scope).get("x-request-id", "")
        path = scope["path"]
        return RequestRecord(
            request_id=request_id,
            public_id=client_id if SOUND_REQUEST_ID.fullmatch(client_id) else request_id,
            route=path if path in self.task_routes else UNKNOWN_ROUTE,
            task=self.task_routes.get(path),
        )

    async def _answer(self, scope: Scope, exchange: _Exchange) -> None:
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.client_gone = True
        except Exception:
            if exchange.client_gone:
                return
            log.exception("request failed", extra={"fields": {"request_id": exchange.record.request_id}})
            if exchange.is_started:
                raise
            reply = error_reply(SluiceError("Internal server error. The server's log has the details."), scope)
            await reply(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request's two channels, watched."""

    def __init__(self, record: RequestRecord, lifecycle: Lifecycle, receive: Receive, send: Send) -> None:
        self.record = record
        self.lifecycle = lifecycle
        self.is_started = False
        self.is_complete = False
        self.client_gone = False
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self.is_complete:
            self.client_gone = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_started = True
            self.record.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.record.public_id
            if self.record.ignored_fields:
                headers["X-Ignored-Fields"] = self.record.ignored_fields
            if self.lifecycle.is_draining:
                headers["Connection"] = "close"
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_complete = not self.client_gone


class BodyGate:
    """Reads the body of every request, whether its route wants one or not.

    Only strict JSON and sound forms get through to work. ``paths`` take work by POST. How long a body may take is the
    connection's affair.
    """

    def __init__(self, app: ASGIApp, *, paths: Collection[str], max_bytes: int) -> None:
        self.app = app
        self.paths = paths
        self.max_bytes = max_bytes
        self.room = BodyRoom(max_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_work = scope["method"] == "POST" and scope["path"] in self.paths
        if not is_work and headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read_checked(scope, headers, receive) if is_work else await self._read(headers, receive)
        except SluiceError as error:
            scope["state"]["dialect"] = scope["state"]["dialect"].of_unread()
            await self._refuse(error, scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)

    async def _read_checked(self, scope: Scope, headers: Headers, receive: Receive) -> bytes:
        """The body; what it holds goes into the request's state, so that nobody parses it again."""
        state = scope["state"]
        form = form_of(headers, state["dialect"])
        if form is not None:
            state["dialect"] = state["dialect"].of_form()
        body = await self._read(headers, receive)
        is_large = len(body) >= LARGE_BODY_BYTES
        state["json"] = await asyncio.to_thread(value_of, body, form) if is_large else value_of(body, form)
        state["dialect"] = state["dialect"].of_body(state["json"])
        return body

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self.max_bytes:
            raise BodyTooLarge(self.max_bytes)
        expected = int(declared) if declared.isdecimal() else self.max_bytes
        body = bytearray()
        async with AsyncExitStack() as room:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect()
                is_large = len(body) > LARGE_BODY_BYTES
                body += message.get("body", b"")
                if len(body) > self.max_bytes:
                    raise BodyTooLarge(self.max_bytes)
                if not message.get("more_body", False):
                    return bytes(body)
                if not is_large and len(body) > LARGE_BODY_BYTES:
                    await room.enter_async_context(self.room.place(expected))

    async def _refuse(self, error: SluiceError, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; where the body has not been read, the connection ends."""
        headers = {}
        if isinstance(error, BodyTooLarge | UnsupportedMediaType):
            headers["Connection"] = "close"
        if isinstance(error, UnsupportedEncoding):
            headers["Accept-Encoding"] = "identity"
        await error_reply(error, scope, headers)(scope, receive, send)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body as one message; after it, what the client does next."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
