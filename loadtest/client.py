"""A small HTTP/1.1 client that notes when each token arrives, and costs little processor time itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit


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

    @property
    def is_whole(self) -> bool:
        return self.status == 200 and self.error is None

    @property
    def ttft_s(self) -> float | None:
        return self.token_times[0] - self.start if self.token_times else None

    @property
    def gaps_s(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.token_times, self.token_times[1:], strict=False)]


async def send(url: str, body: dict[str, Any], *, start: float | None = None) -> Timeline:
    """POST ``body``; a server-sent event with a token is a token, any other answer is read to its end.

    Never raises for what a server or network does: that is ``Timeline.error``.
    """
    sent = perf_counter()
    timeline = Timeline(start=sent if start is None else start, sent=sent)
    try:
        await _exchange(url, body, timeline)
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        timeline.error = type(error).__name__
    timeline.end = perf_counter()
    return timeline


async def _exchange(url: str, body: dict[str, Any], timeline: Timeline) -> None:
    parts = urlsplit(url)
    payload = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80, limit=2**20)
    try:
        head = (
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + payload)
        await writer.drain()
        timeline.status = int((await reader.readline()).split()[1])
        headers = await _headers(reader)
        async for part in _parts(reader, headers):
            now = perf_counter()
            for line in part.splitlines():
                _read_line(line, now, timeline)
        if timeline.status != 200 and timeline.error is None:
            timeline.error = f"status {timeline.status}"
    finally:
        writer.close()


def _read_line(line: bytes, now: float, timeline: Timeline) -> None:
    if not line.startswith(b"data:"):
        return
    event = json.loads(line[5:])
    if "error" in event:
        timeline.error = event["error"]["code"]
    elif "token" in event:
        timeline.token_times.append(now)


async def _headers(reader: asyncio.StreamReader) -> dict[str, str]:
    headers = {}
    while line := (await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return headers


async def _parts(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """The body in the pieces in which the server sent it; an event is never cut by our server."""
    if headers.get("transfer-encoding") != "chunked":
        yield await reader.readexactly(int(headers.get("content-length", 0)))
        return
    while size := int(await reader.readline(), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readline()
