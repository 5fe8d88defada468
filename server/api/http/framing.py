"""Where a request's body ends: what its head declares, and the decoder of chunked bodies. Bytes only, no sockets.

Anything that two readers could understand differently is refused: that is how requests are smuggled past a proxy.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from server.api.http.errors import MalformedRequest
from server.api.http.head import Head

MAX_CHUNK_LINE_BYTES = 1024
"""A chunk's size with its extensions, which are ignored."""
MAX_TRAILER_BYTES = 8 * 1024
MAX_FRAMING_BYTES = 64 * 1024
"""Bytes of a chunked body that are not data, besides four for each byte of data: endless extensions end here."""

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
_LENGTH = re.compile(rb"[0-9]{1,18}")

Body: TypeAlias = "SizedBody | ChunkedBody"


def body_of(head: Head) -> Body | None:
    """The reader of the body that a head announces; None if it announces none. Raises `MalformedRequest`."""
    lengths, codings = head.values(b"content-length"), head.values(b"transfer-encoding")
    if codings:
        if lengths:
            raise MalformedRequest("The request has both Content-Length and Transfer-Encoding.")
        if head.version == "1.0" or len(codings) > 1 or codings[0].strip().lower() != b"chunked":
            raise MalformedRequest("Transfer-Encoding must be chunked, once, in a request of HTTP/1.1.")
        return ChunkedBody()
    if not lengths:
        return None
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0].strip()):
        raise MalformedRequest("Content-Length must be a single number of bytes.")
    length = int(lengths[0])
    return SizedBody(length) if length else None


class SizedBody:
    """A body of ``length`` bytes."""

    def __init__(self, length: int) -> None:
        self.length: int | None = length
        self._num_left = length

    @property
    def is_complete(self) -> bool:
        return self._num_left == 0

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """The body's next bytes, and how many bytes of ``data`` belong to this request."""
        taken = data[: self._num_left]
        self._num_left -= len(taken)
        return taken, len(taken)


class ChunkedBody:
    """A body in chunks. Extensions and trailers are checked, bounded and dropped."""

    length: int | None = None
    """Not known before its end."""

    def __init__(self) -> None:
        self.is_complete = False
        self._line = bytearray()
        self._is_in_trailer = False
        self._is_after_data = False
        """The line that comes is the empty one after a chunk's data."""
        self._num_left = 0
        self._num_data_bytes = 0
        self._num_framing_bytes = 0
        self._num_trailer_bytes = 0

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """The body's next bytes, and how many bytes of ``data`` belong to this request. Raises `MalformedRequest`."""
        found = []
        position = 0
        while position < len(data) and not self.is_complete:
            if self._num_left:
                chunk = data[position : position + self._num_left]
                position += len(chunk)
                self._num_left -= len(chunk)
                self._num_data_bytes += len(chunk)
                self._is_after_data = not self._num_left
                found.append(chunk)
            else:
                position += self._feed_line(data, position)
        return b"".join(found), position

    def _feed_line(self, data: bytes, start: int) -> int:
        """Read on to the end of a line; how many bytes that were."""
        end = data.find(b"\n", start) + 1 or len(data)
        self._line += data[start:end]
        self._count(end - start)
        if self._line.endswith(b"\n"):
            line = bytes(self._line)
            self._line.clear()
            if not line.endswith(b"\r\n"):
                raise MalformedRequest("A line of the chunked body does not end in CR LF.")
            self._on_line(line[:-2])
        return end - start

    def _count(self, num_bytes: int) -> None:
        self._num_framing_bytes += num_bytes
        if self._num_framing_bytes > MAX_FRAMING_BYTES + 4 * self._num_data_bytes:
            raise MalformedRequest("The chunks of the body are too small, or their extensions too long.")
        if self._is_in_trailer:
            self._num_trailer_bytes += num_bytes
            if self._num_trailer_bytes > MAX_TRAILER_BYTES:
                raise MalformedRequest(f"The trailer of the body is larger than {MAX_TRAILER_BYTES} bytes.")
        elif len(self._line) > MAX_CHUNK_LINE_BYTES:
            raise MalformedRequest(f"A chunk's size and extensions are longer than {MAX_CHUNK_LINE_BYTES} bytes.")

    def _on_line(self, line: bytes) -> None:
        """``line`` is without its CR LF."""
        if self._is_after_data:
            if line:
                raise MalformedRequest("A chunk of the body is longer than its size.")
            self._is_after_data = False
        elif self._is_in_trailer:
            self.is_complete = not line
            if line and not _FIELD.fullmatch(line):
                raise MalformedRequest("The trailer of the body does not consist of headers.")
        else:
            size = _CHUNK_SIZE.fullmatch(line)
            if size is None:
                raise MalformedRequest("The size of a chunk of the body is not a hexadecimal number.")
            self._num_left = int(size[1], 16)
            self._is_in_trailer = self._num_left == 0
