"""A small HTTP/1.1 client that notes when each token arrives, and costs next to no processor time itself.

On two cores a client that parses every event takes from the server what it measures. So tokens are counted by their
bytes as they come; the answer is parsed once, at its end, and only where something went wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Coroutine
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter
from typing import Any, TypeVar
from urllib.parse import urlsplit

try:
    from uvloop import run as run_loop
except ImportError:  # not on every platform
    from asyncio import run as run_loop

TOKEN = b'"token":{'
"""In an event once for each token. Text cannot hold it: there its quotes are escaped."""
KEY = "SLUICE_API_KEY"
"""The variable with the key that the server wants, if it wants one."""
LAST_CHUNK = b"0\r\n\r\n"
QUEUE = re.compile(rb'"timings":\{"queue_s":([0-9.e+-]+)')
LAST_WORDS = 16 * 1024
"""The last event is looked for in so many last bytes."""

Result = TypeVar("Result")


@dataclass
class Timeline:
    """What one client saw, in seconds of `perf_counter`."""

    start: float
    """When the request was due, not when it could be sent: a slow server must not slow the clock."""
    sent: float = 0.0
    token_times: list[float] = field(default_factory=list)
    end: float = 0.0
    status: int = 0
    error: str | None = None
    queue_s: float | None = None
    """Until the engine took it up, as the server's last event says."""

    @property
    def is_whole(self) -> bool:
        return self.status == 200 and self.error is None

    @property
    def ttft_s(self) -> float | None:
        return self.token_times[0] - self.start if self.token_times else None

    @property
    def gaps_s(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.token_times)]


def key_headers() -> dict[str, str]:
    """What a request needs beside its own headers."""
    key = os.environ.get(KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """What ``coroutine`` returns, from an event loop as cheap as there is."""
    return run_loop(coroutine)


async def send(
    url: str, body: dict[str, Any] | None, *, start: float | None = None, timeline: Timeline | None = None
) -> Timeline:
    """POST ``body``, or GET without one. An event with a token is a token; any other answer is read to its end.

    Never raises for what a server or network does: that is ``Timeline.error``. A ``timeline`` that is given is filled
    while the tokens come. Cancelling hangs up.
    """
    sent = perf_counter()
    timeline = timeline or Timeline(start=sent)
    timeline.start, timeline.sent = sent if start is None else start, sent
    try:
        await _exchange(url, body, timeline)
    except (OSError, ValueError, IndexError) as error:
        timeline.error = type(error).__name__
    timeline.end = perf_counter()
    return timeline


async def _exchange(url: str, body: dict[str, Any] | None, timeline: Timeline) -> None:
    parts = urlsplit(url)
    payload = b"" if body is None else json.dumps(body).encode()
    key = "".join(f"{name}: {value}\r\n" for name, value in key_headers().items())
    head = (
        f"{'GET' if body is None else 'POST'} {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\nConnection: close\r\n{key}\r\n"
    )
    loop = asyncio.get_running_loop()
    transport, answer = await loop.create_connection(lambda: _Answer(timeline), parts.hostname, parts.port or 80)
    try:
        transport.write(head.encode() + payload)
        await answer.is_complete
    finally:
        transport.close()
    _judge(b"".join(answer.received), timeline)


class _Answer(asyncio.Protocol):
    """Collects one answer, to the end of the connection, and counts its tokens."""

    def __init__(self, timeline: Timeline) -> None:
        self.received: list[bytes] = []
        self.is_complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._times = timeline.token_times
        self._tail = b""

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        self.received.append(data)
        # What TCP cut in two is found with the end of what came before.
        seen = self._tail + data
        if number := seen.count(TOKEN):
            self._times += [now] * number
        self._tail = seen[1 - len(TOKEN) :]

    def connection_lost(self, exc: Exception | None) -> None:
        if self.is_complete.done():
            return
        if exc is None:
            self.is_complete.set_result(None)
        else:
            self.is_complete.set_exception(exc)


def _judge(answer: bytes, timeline: Timeline) -> None:
    """Note the status, and the error if there is one. Raises ValueError or IndexError for what is not HTTP."""
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        raise ConnectionError("the answer has no whole head")
    lines = head.split(b"\r\n")
    timeline.status = int(lines[0].split()[1])
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
    if headers.get(b"transfer-encoding") == b"chunked":
        is_whole = body.endswith(LAST_CHUNK)
    else:
        is_whole = len(body) == int(headers.get(b"content-length", len(body)))
    if found := QUEUE.search(body[-LAST_WORDS:]):
        timeline.queue_s = float(found[1])
    if b'"error":' in body:
        timeline.error = _error_code(body)
    if timeline.error is None and not is_whole:
        timeline.error = "IncompleteAnswer"
    if timeline.error is None and timeline.status != 200:
        timeline.error = f"status {timeline.status}"


def _error_code(body: bytes) -> str | None:
    """The code in an error event."""
    for line in body.splitlines():
        if line.startswith(b"data:") and "error" in (event := json.loads(line[5:])):
            return str(event["error"]["code"])
    return None
