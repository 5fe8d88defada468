"""One request and its answer on a connection: the two ASGI channels, and how the answer is framed."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterable

from starlette.types import ASGIApp, Message, Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE, STATUS_LINE

from server.api.http.dialect import SLUICE, written
from server.api.http.error_replies import error_headers
from server.api.http.outbox import Outbox
from server.errors import SluiceError

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
WITHOUT_BODY = frozenset({204, 304})

Headers = Iterable[tuple[bytes, bytes]]


def refusal(error: SluiceError) -> bytes:
    """A whole answer to what does not reach the application; the connection ends with it."""
    request_id = secrets.token_hex(16)
    body = written(SLUICE.error(error, request_id))
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "cache-control": "no-store",
        "x-request-id": request_id,
        "connection": "close",
        **error_headers(error),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return STATUS_LINE[error.status] + head.encode() + b"\r\n" + body


class Exchange:
    """The connection writes what it receives into it; the application reads that and writes its answer.

    ``on_complete`` is called when the answer is complete and decides what becomes of the connection.
    """

    def __init__(
        self,
        scope: Scope,
        transport: asyncio.Transport,
        flow: FlowControl,
        *,
        keep_alive: bool,
        expects_continue: bool,
        default_headers: Headers,
        outbox: Outbox,
        on_complete: Callable[[], None],
    ) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        """Whether the connection goes on after the answer."""
        self.more_body = True
        """Whether a part of the body has yet to arrive."""
        self.is_disconnected = False
        self.is_started = False
        """Whether the answer's head has been written."""
        self.is_complete = False
        self._transport = transport
        self._flow = flow
        self._expects_continue = expects_continue
        self._default_headers = default_headers
        self._outbox = outbox
        self._on_complete = on_complete
        self._news = asyncio.Event()
        self._body = bytearray()
        self._end_is_taken = False
        self._error: SluiceError | None = None
        self._is_chunked = False
        self._num_left: int | None = None
        """Bytes that the answer's Content-Length promises and that have yet to come."""

    @property
    def is_http_1_0(self) -> bool:
        return bool(self.scope["http_version"] == "1.0")

    def add_body(self, data: bytes) -> None:
        """The next part of the body. Reading pauses while the application has much of it to take."""
        if self.is_complete:
            return
        self._body += data
        if len(self._body) > HIGH_WATER_LIMIT:
            self._flow.pause_reading()
        self._news.set()

    def end_body(self) -> None:
        self.more_body = False
        self._news.set()

    def fail(self, error: SluiceError) -> None:
        """The rest of the body never comes; who asks for it gets ``error``, and the connection ends with the answer."""
        self._error = error
        self.keep_alive = False
        self._news.set()

    def disconnect(self) -> None:
        self.is_disconnected = not self.is_complete
        self._news.set()

    async def run(self, app: ASGIApp) -> None:
        """Let the application answer; what it leaves unanswered ends the connection."""
        try:
            # It has logged its own mistakes.
            # The application has logged its own mistakes.
            with contextlib.suppress(Exception):
                await app(self.scope, self.receive, self.send)
        finally:
            if not self.is_complete and not self.is_disconnected:
                self._give_up()

    async def receive(self) -> Message:
        """The body part by part, then the client's leaving. Raises what is wrong with the body."""
        while True:
            if self.is_disconnected or self.is_complete:
                return {"type": "http.disconnect"}
            if not self._end_is_taken:
                if self._error is not None:
                    raise self._error
                if self._body or not self.more_body:
                    return self._next_part()
                self._ask_for_more()
            self._news.clear()
            await self._news.wait()

    def _next_part(self) -> Message:
        body = bytes(self._body)
        self._body.clear()
        self._end_is_taken = not self.more_body
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    def _ask_for_more(self) -> None:
        self._flow.resume_reading()
        if self._expects_continue and not self.is_started and not self._transport.is_closing():
            self._expects_continue = False
            self._transport.write(CONTINUE)

    async def send(self, message: Message) -> None:
        if self._flow.write_paused and not self.is_disconnected:
            await self._flow.drain()
        if self.is_disconnected:
            return
        if not self.is_started:
            self._start(message["status"], message.get("headers", ()))
        elif not self.is_complete:
            self._write(message.get("body", b""), is_last=not message.get("more_body", False))
        else:
            raise RuntimeError("the application went on after the end of its answer")

    def _start(self, status: int, headers: Headers) -> None:
        self.is_started = True
        if self._expects_continue:
            # The client may send its body after all, or may not: nobody knows where the next request begins.
            self.keep_alive = False
        lines = [STATUS_LINE[status]]
        for name, value in (*self._default_headers, *headers):
            if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
                raise RuntimeError("the application wrote a header that is none")
            name = name.lower()
            if name == b"content-length":
                self._num_left = int(value)
            elif name == b"connection":
                # Whether the connection goes on is written below, once.
                self.keep_alive = self.keep_alive and b"close" not in value.lower()
                continue
            lines += [name, b": ", value, b"\r\n"]
        lines.append(self._framing(status))
        self._transport.write(b"".join(lines))

    def _framing(self, status: int) -> bytes:
        """The last lines of the head: how the client finds the answer's end."""
        lines = b"\r\n"
        if self.scope["method"] == "HEAD" or status in WITHOUT_BODY:
            self._num_left = None
        elif self._num_left is None:
            # A client of HTTP/1.0 knows no chunks: the end of the connection is the end of the answer.
            self._is_chunked = not self.is_http_1_0
            self.keep_alive = self.keep_alive and self._is_chunked
        if self._is_chunked:
            lines = b"transfer-encoding: chunked\r\n" + lines
        if not self.keep_alive:
            return b"connection: close\r\n" + lines
        return b"connection: keep-alive\r\n" + lines if self.is_http_1_0 else lines

    def _write(self, body: bytes, *, is_last: bool) -> None:
        if self._is_chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if is_last:
                self._outbox.flush()
                self._transport.write(data + b"0\r\n\r\n")
            elif data:
                self._outbox.put(self._transport, data)
        elif self.scope["method"] != "HEAD" and body:
            self._count(len(body))
            self._transport.write(body)
        if is_last:
            if self._num_left:
                raise RuntimeError("the application's answer is shorter than its Content-Length")
            self.is_complete = True
            self._news.set()
            self._on_complete()

    def _count(self, num_bytes: int) -> None:
        if self._num_left is not None:
            self._num_left -= num_bytes
            if self._num_left < 0:
                raise RuntimeError("the application's answer is longer than its Content-Length")

    def _give_up(self) -> None:
        if not self.is_started:
            self._transport.write(refusal(SluiceError("Internal server error. The server's log has the details.")))
        self._outbox.flush()
        self._transport.close()
