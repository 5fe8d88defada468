"""Server-sent events: the one place that knows how a stream begins, stays alive, ends and breaks.

Events come in as bytes, rendered by the routes; nothing here knows what is in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from sse_starlette.sse import AppStatus, EventSourceResponse, SendTimeoutError
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from server.api.http.dialect import Dialect
from server.api.http.disconnect import until_disconnect
from server.config import ServeConfig
from server.errors import SluiceError
from server.serving.record import RequestRecord

log = logging.getLogger("sluice.api")

HEAD_WAIT_S = 5.0
"""The head waits so long for the first event, so that an early failure still has its own HTTP status."""
SEND_TIMEOUT_S = 30.0
"""A client that takes nothing for so long is cut off and its blocks are freed."""
KEEP_ALIVE = b": keep-alive\n\n"

# By default the library ends every stream half a second after SIGTERM; ours are finished in the drain time.
AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
# At debug level it logs every chunk: the client's text.
logging.getLogger("sse_starlette").setLevel(logging.INFO)

Events = AsyncGenerator[bytes, None]
ErrorBody = Mapping[str, Any]

LINE_ENDS = {character.encode(): f"\\u{ord(character):04x}".encode() for character in "\u0085\u2028\u2029"}
"""Many clients, Hugging Face's among them, also cut lines at these, which JSON may hold as they are or escaped."""


def data_event(data: bytes) -> bytes:
    """One event of one line; ``data`` is JSON."""
    if not data.isascii():
        for character, escaped in LINE_ENDS.items():
            data = data.replace(character, escaped)
    return b"data: " + data + b"\n\n"


async def event_stream(
    request: Request,
    events: Events,
    config: ServeConfig,
    *,
    error_body: Callable[[ErrorBody], ErrorBody] | None = None,
    empty_chunk: bytes | None = None,
) -> EventStream:
    """The answer that sends ``events``; what fails before the first event is raised here and becomes a plain answer.

    ``error_body`` completes the dialect's error where a stream breaks, and ``empty_chunk`` is an event that says
    nothing, where the dialect has one.
    """
    first = asyncio.ensure_future(anext(events))
    try:
        await until_disconnect(request, asyncio.wait({first}, timeout=HEAD_WAIT_S))
        if first.done():
            first.result()
    except BaseException:
        await _close(first, events)
        raise
    return EventStream(
        first,
        events,
        request.state.record,
        request.state.dialect,
        keep_alive=_sign_of_life(config, empty_chunk),
        keep_alive_s=config.keep_alive_s,
        error_body=error_body,
    )


def _sign_of_life(config: ServeConfig, empty_chunk: bytes | None) -> bytes | None:
    if config.keep_alive == "off":
        return None
    return empty_chunk if config.keep_alive == "chunk" and empty_chunk is not None else KEEP_ALIVE


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _close(first: asyncio.Future[bytes], events: Events) -> None:
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await events.aclose()


class EventStream(EventSourceResponse):
    """A stream whose last event is either the events' own last one or one error event, never both.

    However it ends, the events' generator has been closed when the call returns.
    """

    def __init__(
        self,
        first: asyncio.Future[bytes],
        events: Events,
        record: RequestRecord,
        dialect: Dialect,
        *,
        keep_alive: bytes | None,
        keep_alive_s: float,
        error_body: Callable[[ErrorBody], ErrorBody] | None,
        send_timeout_s: float = SEND_TIMEOUT_S,
    ) -> None:
        # The library's own ping comes at fixed times, also while events flow.
        super().__init__(events, ping=0)
        self._first = first
        self._events = events
        self._record = record
        self._dialect = dialect
        self._keep_alive = keep_alive
        """None: silence is no reason to send anything."""
        self._keep_alive_s = keep_alive_s
        self._error_body = error_body
        self._send_timeout_s = send_timeout_s
        self._clock = asyncio.get_running_loop().time
        self._is_open = False
        self._is_stalled = False
        self._last_sent_s = 0.0
        """When the last send began."""
        self._sender: asyncio.Task[Any] | None = None
        """Who sends."""
        self._is_sending = False
        """Whether it waits for a send to be taken."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._last_sent_s = self._clock()
        watch = asyncio.ensure_future(self._watch(send))
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            self._record.error_code = "slow_client"
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await _close(self._first, self._events)

    async def _stream_response(self, send: Send) -> None:
        """As the library's, with little to do for each event: there is one writer, and events come as bytes."""
        self._sender = asyncio.current_task()
        self._is_open = True
        try:
            await self._put(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await self._put(send, _part(await self._first))
                async for event in self._events:
                    await self._put(send, _part(event))
            except SluiceError as error:
                await self._put(send, _part(self._error(error)))
            except Exception:
                # The API's last handler cannot answer any more: the head has been sent.
                log.exception("stream failed", extra={"fields": {"request_id": self._record.request_id}})
                mistake = SluiceError("Internal server error. The server's log has the details.")
                await self._put(send, _part(self._error(mistake)))
            self._is_open = self.active = False
            await self._put(send, {"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            if self._is_stalled:
                raise SendTimeoutError() from None
            raise

    async def _put(self, send: Send, message: Message) -> None:
        """Send while `_watch` keeps time: a limit for each send would take as long as the send."""
        self._last_sent_s, self._is_sending = self._clock(), True
        await send(message)
        self._is_sending = False

    def _error(self, error: SluiceError) -> bytes:
        self._record.error_code = error.code
        error.reader = self._record.reader
        body: ErrorBody = self._dialect.error(error, self._record.public_id)
        return self._dialect.error_event(body if self._error_body is None else self._error_body(body))

    async def _watch(self, send: Send) -> None:
        """Send a sign of life after each ``keep_alive_s`` of silence, and end a send that is not taken in time."""
        clock = self._clock
        while True:
            limit_s = self._send_timeout_s if self._is_sending else self._keep_alive_s
            left_s = self._last_sent_s + limit_s - clock()
            if left_s > 0:
                await asyncio.sleep(min(left_s, self._send_timeout_s))
            elif self._is_sending and self._sender is not None:
                self._is_stalled = True
                self._sender.cancel()
                return
            else:
                self._last_sent_s = clock()
                await self._send_sign_of_life(send)

    async def _send_sign_of_life(self, send: Send) -> None:
        if not self._is_open or self._keep_alive is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._send_timeout_s):
                await send({"type": "http.response.body", "body": self._keep_alive, "more_body": True})
