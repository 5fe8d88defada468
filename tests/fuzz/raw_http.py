"""Seeded clients that break HTTP on purpose: what each sends, and when it stops."""

from __future__ import annotations

import itertools
import json
import random
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any, Literal

BODY = json.dumps({"inputs": "The mill", "parameters": {"max_new_tokens": 3}}).encode()
STREAM = json.dumps({"inputs": "The mill", "stream": True}).encode()
JSON = b"Content-Type: application/json\r\n"
HOST = b"Host: 127.0.0.1\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def post(body: bytes, path: bytes = b"/generate") -> bytes:
    length = str(len(body)).encode()
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: " + length + b"\r\n\r\n" + body


def chunked(body: bytes, trailer: bytes = b"") -> bytes:
    middle = len(body) // 2
    parts = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:middle], body[middle:]))
    head = b"POST /generate HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
    return head + parts + b"0\r\n" + trailer + b"\r\n"


SOUND = (
    b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n",
    b"HEAD /info HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /nothing HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /livez HTTP/1.0\r\n\r\n",
    post(BODY),
    post(STREAM),
    post(b'{"inputs": 5}'),
    post(b"{"),
    chunked(BODY),
    chunked(BODY, b"X-Trailer: a\r\n"),
)


def _pair(headers: bytes, body: bytes) -> bytes:
    return b"POST /generate HTTP/1.1\r\n" + HOST + JSON + headers + b"\r\n" + body


SMUGGLING = (
    _pair(b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + SMUGGLED),
    _pair(b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n", b"0\r\n\r\n" + SMUGGLED),
    _pair(b"Content-Length: 2\r\nContent-Length: 3\r\n", b"{} " + SMUGGLED),
    _pair(b"Content-Length: 2, 3\r\n", b"{} " + SMUGGLED),
    _pair(b"Content-Length: +2\r\n", b"{}" + SMUGGLED),
    _pair(b"Content-Length: 0x2\r\n", b"{}" + SMUGGLED),
    _pair(b"Content-Length : 2\r\n", b"{}" + SMUGGLED),
    _pair(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n" + SMUGGLED),
    _pair(b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n" + SMUGGLED),
    _pair(b"Transfer-Encoding: chunked\r\n", b"g\r\n" + SMUGGLED),
    _pair(b"Transfer-Encoding: chunked\r\n", b"-1\r\n" + SMUGGLED),
    _pair(b"X: a\r\n Content-Length: 2\r\n", b"{}" + SMUGGLED),
    _pair(b"X: a\nContent-Length: 2\n", b"{}" + SMUGGLED),
)
"""Requests that two readers could end at different places. Behind each stands one that must never be read."""

End = Literal["half close", "reset", "close"]


@dataclass(frozen=True)
class Program:
    """What one client does."""

    parts: tuple[bytes, ...]
    pause_s: float
    end: End


def program(rng: random.Random) -> Program:
    """Sound requests, one after another, damaged, cut, and sent in pieces."""
    data = b"".join(rng.choice(SOUND) for _ in range(rng.randint(1, 4)))
    for _ in range(rng.choice((0, 0, 1, 1, 2, 5))):
        data = _damaged(data, rng)
    end: End = rng.choice(("half close", "half close", "reset", "close"))
    if end != "half close" or rng.random() < 0.3:
        data = data[: rng.randrange(len(data) + 1)]
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 1, 3, 20))))
    edges = [0, *cuts, len(data)]
    parts = tuple(data[start:stop] for start, stop in itertools.pairwise(edges))
    return Program(parts, rng.choice((0.0, 0.0, 0.002)), end)


def _damaged(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    lines = data.split(b"\r\n")
    line = rng.randrange(len(lines))
    match rng.randrange(7):
        case 0:
            return data[:place] + rng.randbytes(rng.randint(1, 8)) + data[place:]
        case 1:
            return data[:place] + data[place + rng.randint(1, 8) :]
        case 2:
            return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
        case 3:
            return b"\r\n".join([*lines[:line], lines[line], *lines[line:]])
        case 4:
            return b"\r\n".join([*lines[:line], *lines[line + 1 :]])
        case 5:
            return data.replace(b"\r\n", b"\n", rng.randint(1, 3))
        case _:
            header = rng.choice((b"Transfer-Encoding: chunked", b"Content-Length: 7", b"Expect: 100-continue",
                                 b"Connection: close", b"Upgrade: h2c", b"Host: b", b"\x00: a", b"X: " + b"a" * 9000,
                                 b"Content-Encoding: gzip", b" folded"))  # fmt: skip
            return b"\r\n".join([*lines[:line], header, *lines[line:]])


def play(port: int, client: Program, limit_s: float) -> bytes:
    """All that the server sends until it closes. Raises TimeoutError if it does not after a half close."""
    with socket.create_connection(("127.0.0.1", port), timeout=limit_s) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for part in client.parts:
                connection.sendall(part)
                time.sleep(client.pause_s)
            if client.end == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if client.end != "half close":
                return b""
            connection.shutdown(socket.SHUT_WR)
            return _all_of(connection)
        except TimeoutError:
            raise
        except OSError:
            # The server has closed, as it may.
            return b""


def _all_of(connection: socket.socket) -> bytes:
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def answers(received: bytes) -> list[tuple[int, bytes]]:
    """Status and body of every answer, read strictly; a HEAD's has no body. Raises ValueError for what is no HTTP."""
    found = []
    while received:
        head, separator, rest = received.partition(b"\r\n\r\n")
        if not separator:
            raise ValueError(f"no whole head: {received[:200]!r}")
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status = first.split(" ")[:2]
        if version not in ("HTTP/1.1", "HTTP/1.0"):
            raise ValueError(first)
        headers: dict[str, Any] = dict(line.lower().split(": ", 1) for line in lines)
        if status == "100":
            received = rest
            continue
        body, received = _body(rest, headers)
        found.append((int(status), body))
    return found


def _body(rest: bytes, headers: dict[str, str]) -> tuple[bytes, bytes]:
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while True:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            body, rest = body + rest[:length], rest[length + 2 :]
            if length == 0:
                return body, rest
    if "content-length" not in headers:
        return rest, b""
    length = int(headers["content-length"])
    # An answer to HEAD has a length and no body: another head, or nothing, stands there.
    if rest.startswith(b"HTTP/1.1 ") or not rest:
        return b"", rest
    return rest[:length], rest[length:]
