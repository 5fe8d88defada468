"""A client that has ended its side of the connection while its answer is being made.

It may have closed the connection altogether, or may still be reading: TCP tells the two apart only when something is
sent. So an interim response goes out, which clients of HTTP/1.1 skip; where nobody reads, the answer is a reset. A
client of HTTP/1.0 knows no interim responses and keeps its request alive until the first byte of the answer.
"""

from __future__ import annotations

import asyncio
import socket

from server.api.http.exchange import CONTINUE, Exchange

FIRST_LOOK_S = 0.02
LOOK_S = 0.25
"""Looks become rarer, from the first to this: most clients that end their side have left."""
PROBE_S = 15.0
"""Between two interim responses: a client may leave later too."""
TCP_CLOSE = 7
"""The state of a connection that was reset, as Linux numbers them."""


class HalfClosed:
    """Aborts the connection once its client is gone. Ends with `stop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, exchange: Exchange) -> None:
        self._loop = loop
        self._transport = transport
        self._exchange = exchange
        self._next_probe_s = 0.0
        self._wait_s = FIRST_LOOK_S
        self._timer = loop.call_later(self._wait_s, self._look)

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        if _is_reset(self._transport):
            self._transport.abort()
            return
        now_s = self._loop.time()
        if now_s >= self._next_probe_s and not self._exchange.is_started and not self._exchange.is_http_1_0:
            self._next_probe_s = now_s + PROBE_S
            self._transport.write(CONTINUE)
        self._wait_s = min(2 * self._wait_s, LOOK_S)
        self._timer = self._loop.call_later(self._wait_s, self._look)


def _is_reset(transport: asyncio.Transport) -> bool:
    """False where the system does not tell."""
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is None or not hasattr(socket, "TCP_INFO"):
        return False
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE
