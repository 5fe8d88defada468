"""The front's end of the socket pair: an asyncio protocol that never blocks the event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import cast

from server import framing
from server.protocol import Command, Reply

MAX_UNSENT_BYTES = 1 << 20
"""From here on the connection is not writable: a worker in a long step reads nothing until it is over."""

log = logging.getLogger("sluice.client")


class Connection(asyncio.Protocol):
    """Replies are handed over as they arrive, one call for all that one read brought."""

    def __init__(self, on_replies: Callable[[list[Reply]], None], on_writable: Callable[[], None]) -> None:
        self.closed = asyncio.Event()
        """The worker is gone, or sent what no worker sends."""
        self.is_writable = True
        self._on_replies = on_replies
        self._on_writable = on_writable
        self._decoder = framing.reply_decoder()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(
        cls, sock: socket.socket, on_replies: Callable[[list[Reply]], None], on_writable: Callable[[], None]
    ) -> Connection:
        """Take over one end of a pair."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_unix_connection(lambda: cls(on_replies, on_writable), sock=sock)
        return connection

    async def closed_within(self, limit_s: float) -> bool:
        """Wait until the worker is gone, but no longer than ``limit_s``."""
        try:
            async with asyncio.timeout(limit_s):
                await self.closed.wait()
        except TimeoutError:
            return False
        return True

    def send(self, commands: Sequence[Command]) -> None:
        """One frame, at once or when the worker reads on. On a closed connection it goes nowhere."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(framing.encode(commands))

    def close(self) -> None:
        """Drop what is unsent; the worker reads end-of-file and exits."""
        if self._transport is not None:
            self._transport.abort()
        self.closed.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A stream socket's transport goes both ways, but uvloop's is not a subclass of asyncio's.
        transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=MAX_UNSENT_BYTES)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            replies = self._decoder.feed(data)
        except framing.FrameError as error:
            log.error("a worker broke the protocol", extra={"fields": {"error": str(error)}})
            self.close()
            return
        if replies:
            self._on_replies(replies)

    def eof_received(self) -> None:
        # Left to itself, a transport first waits for unsent data to go, which under uvloop may be for ever.
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            log.debug("a worker's connection broke", extra={"fields": {"error": str(exc)}})
        self.closed.set()

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        self._on_writable()
