"""HTTP/1.1 on one connection, one request at a time: every part of a request is bounded in bytes and in time.

What arrives before the answer to the last request is complete waits unread, so that a mistake in it harms no answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.utils import get_local_addr, get_remote_addr
from uvicorn.server import ServerState

from server.api.http.errors import MalformedRequest, RequestTimeout, TooManyConnections
from server.api.http.exchange import Exchange, refusal
from server.api.http.framing import Body, body_of
from server.api.http.half_closed import HalfClosed
from server.api.http.head import Head, take_head
from server.api.http.rules import Rules
from server.errors import SluiceError

MAX_WAITING_BYTES = 64 * 1024
"""Of requests that a client sends before the answer to its last one is complete."""

READ_BYTES = 64 * 1024

HEAD_TIMEOUT_S = 10.0
BODY_BASE_S = 30.0
BODY_BYTES_PER_S = 64 * 1024
"""A body may take 30 s and a second more for each 64 KiB; so may the reading of an answer that is written whole."""
LINGER_S = 2.0
LINGER_BYTES = 16 * 1024 * 1024
"""What a refused client may still send: closing with unread bytes resets a connection, which can lose the answer."""


class HttpProtocol(asyncio.BufferedProtocol):
    """One connection of uvicorn's server."""

    _arriving = memoryview(bytearray(READ_BYTES))
    """Shared by all: what is read into it is taken at once."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],  # noqa: ARG002
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        rules: Rules,
    ) -> None:
        self._app = config.loaded_app
        self._idle_timeout_s = config.timeout_keep_alive
        self._server_state = server_state
        self._rules = rules
        self._loop = _loop or asyncio.get_running_loop()
        self._input = bytearray()
        """What has arrived and has not been taken."""
        self._deadline: asyncio.TimerHandle | None = None
        """The one thing that is waited for: a request, its head, its body, or the end."""
        self._is_in_head = False
        self._exchange: Exchange | None = None
        """The last request."""
        self._body: Body | None = None
        """Its body, as long as that is not complete."""
        self._is_deaf = False
        """What arrives is ignored: the connection ends with the answer that is being written."""
        self._num_ignored_bytes = 0
        self._half_closed: HalfClosed | None = None
        self._is_admitted = False
        self._owner: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = transport = cast(asyncio.Transport, transport)
        self._flow = FlowControl(transport)
        self._client, self._server = get_remote_addr(transport), get_local_addr(transport)
        self._server_state.connections.add(self)  # type: ignore[arg-type]
        try:
            self._owner = self._rules.connections.open(self._client[0] if self._client else "")
        except TooManyConnections as error:
            if self._rules.connections.refuse():
                self._refuse(error)
            else:
                transport.abort()
            return
        self._is_admitted = True
        self._arm(self._idle_timeout_s, self._close)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._server_state.connections.discard(self)
        self._rules.connections.close(self._owner, was_refused=not self._is_admitted)
        self._disarm()
        if self._half_closed is not None:
            self._half_closed.stop()
        self._flow.resume_writing()
        if self._exchange is not None:
            self._exchange.disconnect()

    def eof_received(self) -> bool:
        """The client sends no more. It gets its answer if it still reads; whether it does is watched."""
        if self._is_answering and self._body is None and not self._is_deaf:
            assert self._exchange is not None
            self._half_closed = HalfClosed(self._loop, self._transport, self._exchange)
            return True
        self._close()
        return False

    def pause_writing(self) -> None:
        self._flow.pause_writing()

    def resume_writing(self) -> None:
        self._flow.resume_writing()

    def shutdown(self) -> None:
        """Called when the server stops: end the connection, after its answer if there is one to come."""
        if self._exchange is not None and self._is_answering:
            self._exchange.keep_alive = False
        else:
            self._close()

    @property
    def _is_answering(self) -> bool:
        return self._exchange is not None and not self._exchange.is_complete

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._arriving

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_deaf:
            self._ignore(nbytes)
        else:
            self._input += self._arriving[:nbytes]
            self._advance()

    def _ignore(self, num_bytes: int) -> None:
        self._num_ignored_bytes += num_bytes
        if self._num_ignored_bytes > LINGER_BYTES:
            self._close()

    def _advance(self) -> None:
        """Take what has arrived, as far as its turn has come."""
        try:
            while self._input and not self._is_deaf:
                if self._exchange is not None and self._body is not None:
                    self._take_body(self._exchange, self._body)
                elif self._is_answering:
                    if len(self._input) > MAX_WAITING_BYTES:
                        self._flow.pause_reading()
                    return
                elif (head := take_head(self._input)) is not None:
                    self._begin(head)
                else:
                    self._await_head()
                    return
        except SluiceError as error:
            self._refuse(error)

    def _await_head(self) -> None:
        if not self._is_in_head:
            self._is_in_head = True
            self._arm(HEAD_TIMEOUT_S, self._on_head_timeout)

    def _on_head_timeout(self) -> None:
        self._refuse(RequestTimeout("The request's head did not arrive in time."))

    def _begin(self, head: Head) -> None:
        """Give the application a request. Raises `MalformedRequest` or `HostNotAllowed`."""
        self._is_in_head = False
        self._disarm()
        hosts = head.values(b"host")
        if len(hosts) > 1 or (not hosts and head.version != "1.0"):
            raise MalformedRequest("An HTTP/1.1 request must have exactly one Host header.")
        for host in hosts:
            self._rules.hosts.check(host)
        self._body = body_of(head)
        expects_continue = head.version != "1.0" and [v.lower() for v in head.values(b"expect")] == [b"100-continue"]
        self._exchange = exchange = Exchange(
            head.scope(client=self._client, server=self._server, state={}),
            self._transport,
            self._flow,
            keep_alive=head.keep_alive,
            expects_continue=expects_continue and self._body is not None,
            default_headers=self._server_state.default_headers,
            outbox=self._rules.outbox,
            on_complete=self._on_complete,
        )
        if self._body is None:
            exchange.end_body()
        else:
            self._arm(self._body_limit_s(self._body.length), self._on_body_timeout)
        task = self._loop.create_task(exchange.run(self._app))
        self._server_state.tasks.add(task)
        task.add_done_callback(self._server_state.tasks.discard)

    def _body_limit_s(self, length: int | None) -> float:
        most = self._rules.max_body_bytes
        return BODY_BASE_S + min(most if length is None else length, most) / BODY_BYTES_PER_S

    def _take_body(self, exchange: Exchange, body: Body) -> None:
        try:
            data, num_taken = body.feed(bytes(self._input))
        except MalformedRequest as error:
            self._break(exchange, error)
            return
        del self._input[:num_taken]
        if exchange.is_complete:
            self._ignore(num_taken)
        exchange.add_body(data)
        if body.is_complete:
            self._body = None
            exchange.end_body()
            self._disarm()
            if exchange.is_complete:
                self._arm(self._idle_timeout_s, self._close)

    def _on_body_timeout(self) -> None:
        if self._exchange is not None:
            self._break(self._exchange, RequestTimeout("The body did not arrive in time."))

    def _break(self, exchange: Exchange, error: SluiceError) -> None:
        """Nothing can be made of what arrives from here on."""
        self._is_deaf = True
        self._input.clear()
        self._disarm()
        exchange.fail(error)
        if exchange.is_complete:
            self._linger()

    def _on_complete(self) -> None:
        """The answer to the last request has been written."""
        self._server_state.total_requests += 1
        if self._half_closed is not None:
            self._half_closed.stop()
        if self._transport.is_closing() or self._exchange is None:
            return
        if not self._exchange.keep_alive or self._is_deaf:
            self._end()
            return
        if self._half_closed is None:
            self._flow.resume_reading()
        if self._body is not None:
            # Nobody has read it. The next request, if there is one, comes after it.
            self._arm(LINGER_S, self._close)
            return
        self._arm(self._idle_timeout_s, self._close)
        self._advance()
        # The rest of an incomplete body will never arrive.
        if self._half_closed is not None and (self._body is not None or not self._is_answering):
            self._close()

    def _refuse(self, error: SluiceError) -> None:
        """Answer what does not become a request. No other answer is being written: each waits for the last one."""
        if not self._transport.is_closing():
            self._transport.write(refusal(error))
            self._linger()

    def _end(self) -> None:
        if (self._body is not None or self._is_deaf) and self._half_closed is None:
            self._linger()
        else:
            self._close()

    def _linger(self) -> None:
        """Close when the client has had time to read the answer."""
        self._is_deaf = True
        self._body = None
        self._input.clear()
        self._flow.resume_reading()
        self._transport.write_eof()
        self._arm(LINGER_S, self._close)

    def _close(self) -> None:
        """Close when what has been written is read, and at the latest when that has had its time."""
        self._is_deaf = True
        self._transport.close()
        self._arm(BODY_BASE_S + self._transport.get_write_buffer_size() / BODY_BYTES_PER_S, self._transport.abort)

    def _arm(self, seconds: float, action: Callable[[], None]) -> None:
        self._disarm()
        self._deadline = self._loop.call_later(seconds, action)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
