"""Frames on the socket between front and worker: four bytes of length, then a msgpack array of messages.

Knows bytes and the two unions of `protocol`; no sockets, no processes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import msgspec

from server.protocol import Command, Reply

MAX_FRAME_BYTES = 256 * 1024 * 1024
"""A longer frame means that the stream is out of step: the connection is closed."""

Message = TypeVar("Message")

_LENGTH = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()


class FrameError(Exception):
    """The bytes are not frames of the expected messages: the connection cannot be used any more."""


def encode(messages: Sequence[msgspec.Struct]) -> bytearray:
    """One frame that holds ``messages``."""
    frame = bytearray(_LENGTH.size)
    _encoder.encode_into(messages, frame, _LENGTH.size)
    num_bytes = len(frame) - _LENGTH.size
    if num_bytes > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {num_bytes} bytes is longer than the limit of {MAX_FRAME_BYTES}")
    _LENGTH.pack_into(frame, 0, num_bytes)
    return frame


class Decoder(Generic[Message]):
    """Turns the bytes of a stream, in pieces of any size, into messages that have been checked against their schema."""

    def __init__(self, decode: Callable[[memoryview], list[Message]]) -> None:
        self._decode_body = decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Messages of the frames that ``data`` completes, in order."""
        self._buffer += data
        messages: list[Message] = []
        start = 0
        while (stop := self._frame_end(start)) is not None:
            messages += self._decode(memoryview(self._buffer)[start + _LENGTH.size : stop])
            start = stop
        del self._buffer[:start]
        return messages

    def _frame_end(self, start: int) -> int | None:
        if len(self._buffer) < start + _LENGTH.size:
            return None
        (num_bytes,) = _LENGTH.unpack_from(self._buffer, start)
        if num_bytes > MAX_FRAME_BYTES:
            raise FrameError(f"a frame of {num_bytes} bytes is longer than the limit of {MAX_FRAME_BYTES}")
        stop = start + _LENGTH.size + num_bytes
        return stop if len(self._buffer) >= stop else None

    def _decode(self, body: memoryview) -> list[Message]:
        try:
            return self._decode_body(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise FrameError(f"a frame does not hold the expected messages: {error}") from error
        finally:
            body.release()


def command_decoder() -> Decoder[Command]:
    """What the worker reads."""
    return Decoder(msgspec.msgpack.Decoder(list[Command]).decode)


def reply_decoder() -> Decoder[Reply]:
    """What the front reads."""
    return Decoder(msgspec.msgpack.Decoder(list[Reply]).decode)
