"""A request's head: parsed by llhttp from bytes that have arrived whole, and checked for what llhttp lets pass."""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass
from typing import Any

import httptools

from server.api.http.errors import HeadersTooLarge, MalformedRequest, UriTooLong

MAX_URL_BYTES = 8 * 1024
MAX_REQUEST_LINE_BYTES = MAX_URL_BYTES + 64
MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
END = b"\r\n\r\n"
_REQUEST_LINE = re.compile(rb"[A-Z-]+ [!-~]+ HTTP/1\.[01]\r\n")


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a head says. Header names are in lower case."""

    version: str
    """1.0 or 1.1"""
    method: str
    raw_path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    keep_alive: bool

    def values(self, name: bytes) -> list[bytes]:
        """Every value of a header."""
        return [value for each, value in self.headers if each == name]

    def scope(self, **connection: Any) -> dict[str, Any]:
        """ASGI's description of the request; ``connection`` is what the head does not say."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": self.version,
            "method": self.method,
            "scheme": "http",
            "path": urllib.parse.unquote(self.raw_path.decode("ascii")),
            "raw_path": self.raw_path,
            "query_string": self.query,
            "root_path": "",
            "headers": self.headers,
            **connection,
        }


def take_head(data: bytearray) -> Head | None:
    """Remove a whole head from the front of ``data``; None until it is complete.

    Raises `UriTooLong`, `HeadersTooLarge` or `MalformedRequest`, also for a part that no end could make right.
    """
    if data.startswith(b"\r\n"):
        # Some old clients send it after a body.
        del data[:2]
    end = data.find(END)
    size = end + len(END) if end >= 0 else len(data)
    if size > MAX_REQUEST_LINE_BYTES and data.find(b"\r\n", 0, MAX_REQUEST_LINE_BYTES) < 0:
        raise UriTooLong(f"The address is longer than {MAX_URL_BYTES} bytes.")
    if size > MAX_HEAD_BYTES:
        raise HeadersTooLarge(f"The request's head is larger than {MAX_HEAD_BYTES} bytes.")
    if data and not data[:1].isupper() and data != b"\r":
        raise MalformedRequest("The request does not begin with an HTTP method. The server does not support TLS.")
    head = bytes(data[:size])
    if head.count(b"\n") != head.count(b"\r\n"):
        raise MalformedRequest("The request's head has a line that does not end in CR LF.")
    if end < 0:
        return None
    del data[:size]
    return _parsed(head)


def _parsed(head: bytes) -> Head:
    if head.count(b"\r") != head.count(b"\r\n"):
        raise MalformedRequest("The request's head has a CR without LF.")
    if b"\r\n " in head or b"\r\n\t" in head:
        raise MalformedRequest("A header of the request is folded into several lines.")
    if not _REQUEST_LINE.match(head):
        raise _malformed()
    found = _Found()
    found.parser = parser = httptools.HttpRequestParser(found)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        # Answered in HTTP/1.1, as every server may.
        pass
    except httptools.HttpParserError:
        raise _malformed() from None
    if not found.is_whole:
        raise _malformed()
    if len(found.url) > MAX_URL_BYTES:
        raise UriTooLong(f"The address is longer than {MAX_URL_BYTES} bytes.")
    if len(found.headers) > MAX_HEADERS:
        raise HeadersTooLarge(f"The request has more than {MAX_HEADERS} headers.")
    raw_path, query = _split(found.url)
    return Head(
        version=parser.get_http_version(),
        method=parser.get_method().decode("ascii"),
        raw_path=raw_path,
        query=query,
        headers=found.headers,
        keep_alive=found.keep_alive,
    )


def _split(url: bytes) -> tuple[bytes, bytes]:
    """Path and query of a request's target."""
    try:
        parsed = httptools.parse_url(url)
        path: bytes = parsed.path or b"/"
        path.decode("ascii")
    except (httptools.HttpParserError, ValueError):
        raise _malformed() from None
    return path, parsed.query or b""


def _malformed() -> MalformedRequest:
    return MalformedRequest("This is not a well-formed HTTP/1.1 request.")


class _Found:
    """What llhttp calls."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_whole = False
        self.keep_alive = False
        self.parser: httptools.HttpRequestParser | None = None

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        assert self.parser is not None
        self.is_whole = True
        # It forgets this with the end of the message, which a head without a body is.
        self.keep_alive = self.parser.should_keep_alive()
