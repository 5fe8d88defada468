"""Clients that mean harm, all from one address of their own.

`attack` runs them until it is cancelled; each kind counts what it did. They read as little of the answers as they can:
what they cost themselves is taken from the machine of the server they attack.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

ADDRESS = "127.0.0.2"
"""Theirs; on Linux all of 127.0.0.0/8 is the machine itself."""
RESET = struct.pack("ii", 1, 0)
SLOW_GRAMMAR = [{"type": "string", "pattern": f".*a.{{{n}}}"} for n in range(20, 40)]
LONG_TEXT = "a" * 2_000_000
MAX_CANCEL_S = 0.3
CONNECT_AGAIN_S = 0.2


@dataclass(frozen=True)
class Scale:
    """How many of each kind."""

    seconds: float
    never_reading: int = 64
    idle: int = 500
    cancels: int = 10_000
    grammars: int = 24
    long_texts: int = 4


async def attack(port: int, scale: Scale, new_tokens: int) -> Counter[str]:
    """Everything at once for ``scale.seconds``; how often each thing was done."""
    target = _Target(port, new_tokens)
    kinds: list[Coroutine[Any, Any, None]] = [target.cancel(scale.cancels, scale.seconds)]
    kinds += [target.for_ever(target.never_read, number) for number in range(scale.never_reading)]
    kinds += [target.for_ever(target.idle, number) for number in range(scale.idle)]
    kinds += [target.for_ever(target.ask_slow_grammar, number) for number in range(scale.grammars)]
    kinds += [target.for_ever(target.ask_long_text, number) for number in range(scale.long_texts)]
    tasks = [asyncio.create_task(kind) for kind in kinds]
    await asyncio.sleep(scale.seconds)
    await tasks[0]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return target.done


class _Target:
    """One server, and what has been done to it."""

    def __init__(self, port: int, new_tokens: int) -> None:
        self.done: Counter[str] = Counter()
        self._port = port
        self._new_tokens = new_tokens
        self._loop = asyncio.get_running_loop()

    async def for_ever(self, kind: Callable[[int], Coroutine[Any, Any, None]], number: int) -> None:
        while True:
            try:
                await kind(number)
                self.done[kind.__name__] += 1
            except OSError:
                # Cut off or refused, as it should be.
                self.done[f"{kind.__name__}, ended by the server"] += 1
                await asyncio.sleep(CONNECT_AGAIN_S)

    async def never_read(self, number: int) -> None:
        """Ask for a long stream and take nothing of it."""
        with await self._connect(receive_bytes=4096) as connection:
            await self._loop.sock_sendall(connection, self._stream(number))
            await asyncio.sleep(3600)

    async def idle(self, number: int) -> None:  # noqa: ARG002
        """Connect and say nothing, until the server hangs up."""
        with await self._connect() as connection:
            await self._loop.sock_recv(connection, 1)

    async def ask_slow_grammar(self, number: int) -> None:
        """A grammar that takes all the time that it is given; another one each time."""
        unlike = [{"type": "string", "minLength": random.randrange(1_000_000) * 100 + number}]
        grammar = {"type": "json", "value": {"allOf": SLOW_GRAMMAR + unlike}}
        await self._ask({"inputs": "x", "parameters": {"max_new_tokens": 1, "grammar": grammar}})

    async def ask_long_text(self, number: int) -> None:  # noqa: ARG002
        """A text far beyond what the model reads."""
        await self._ask({"inputs": LONG_TEXT, "parameters": {"max_new_tokens": 1}})

    async def cancel(self, number: int, seconds: float) -> None:
        """``number`` requests, evenly over the time, each left soon after it began."""
        start_s = self._loop.time()
        async with asyncio.TaskGroup() as group:
            for done in range(number):
                await asyncio.sleep(max(0.0, start_s + seconds * done / number - self._loop.time()))
                group.create_task(self._cancel_one(done))

    async def _cancel_one(self, number: int) -> None:
        try:
            with await self._connect() as connection:
                await self._loop.sock_sendall(connection, self._stream(number, is_stream=number % 2 == 0))
                await asyncio.sleep(random.uniform(0, MAX_CANCEL_S))
                if number % 4 < 2:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.done["cancel"] += 1
        except OSError:
            self.done["cancel, ended by the server"] += 1

    def _stream(self, number: int, *, is_stream: bool = True) -> bytes:
        parameters = {"max_new_tokens": self._new_tokens, "ignore_eos": True, "details": True, "temperature": 1.0}
        return _request({"inputs": f"Number {number}", "stream": is_stream, "parameters": parameters})

    async def _ask(self, body: dict[str, Any]) -> None:
        with await self._connect() as connection:
            await self._loop.sock_sendall(connection, _request(body))
            while await self._loop.sock_recv(connection, 65536):
                pass

    async def _connect(self, receive_bytes: int | None = None) -> socket.socket:
        connection = socket.socket()
        try:
            connection.setblocking(False)
            connection.bind((ADDRESS, 0))
            if receive_bytes is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            await self._loop.sock_connect(connection, ("127.0.0.1", self._port))
        except BaseException:
            connection.close()
            raise
        return connection


def _request(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    lines = ("POST /generate HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Connection: close")
    return "\r\n".join((*lines, f"Content-Length: {len(content)}", "", "")).encode() + content
