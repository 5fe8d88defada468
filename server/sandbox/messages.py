"""What crosses between the front and a sandbox process, in the frames of `server.framing`; each frame holds one."""

from __future__ import annotations

from typing import Any

import msgspec

from server import framing

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""A longer answer is refused, on both sides."""


class Call(msgspec.Struct, frozen=True, tag=True):
    """Run one of `functions.FUNCTIONS`."""

    function: str
    arguments: list[Any]
    limit_s: float
    """Processor time after which the process is ended, should nobody else end it."""


class Started(msgspec.Struct, frozen=True, tag=True):
    """The process takes calls. Sent once."""


class Returned(msgspec.Struct, frozen=True, tag=True):
    """The function's result."""

    value: Any


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The function refused its arguments, or failed on them: whole sentences for the client."""

    message: str


Reply = Started | Returned | Refused


def call_decoder() -> framing.Decoder[Call]:
    """What the sandbox reads."""
    return framing.Decoder(msgspec.msgpack.Decoder(list[Call]).decode)


def reply_decoder() -> framing.Decoder[Reply]:
    """What the front reads."""
    return framing.Decoder(msgspec.msgpack.Decoder(list[Reply]).decode)
