"""What crosses the process boundary arrives whole, and anything else is an error, never a hang or a wrong message."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import framing
from server.config import ModelConfig
from server.framing import MAX_FRAME_BYTES, FrameError
from server.protocol import (
    Abort,
    Encode,
    Generate,
    Load,
    MaskQuery,
    Output,
    Ping,
    Pong,
    SamplingParams,
    Scores,
)

COMMANDS = [
    Load(ModelConfig(name="m", path="/p", threads=2)),
    Generate("r", [1, 70_000], SamplingParams(max_new_tokens=3, seed=2**63 - 1, stop_token_ids=(4,)), [Output([5])]),
    Encode("e", [1, 2], mask=MaskQuery([1], 5, [7])),
    Abort("r"),
    Ping(),
]


@given(st.lists(st.integers(1, 40), max_size=30))
def test_frames_arrive_in_pieces_of_any_size(sizes: list[int]) -> None:
    stream = bytes(framing.encode(COMMANDS[:2]) + framing.encode([]) + framing.encode(COMMANDS[2:]))
    decoder = framing.command_decoder()
    messages = []
    for size in [*sizes, len(stream)]:
        messages += decoder.feed(stream[:size])
        stream = stream[size:]
    assert messages == COMMANDS


def test_numbers_arrive_bit_for_bit() -> None:
    scores = Scores("e", (1, 2), struct.pack("<2f", 0.1, float("nan")))
    assert framing.reply_decoder().feed(bytes(framing.encode([scores]))) == [scores]


@given(st.binary(min_size=1, max_size=300))
def test_a_frame_of_random_bytes_is_refused(body: bytes) -> None:
    if body == b"\x90":  # the empty list
        return
    with pytest.raises(FrameError):
        framing.command_decoder().feed(struct.pack("<I", len(body)) + body)


def test_a_frame_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(FrameError, match="longer than the limit"):
        framing.reply_decoder().feed(struct.pack("<I", MAX_FRAME_BYTES + 1))


def test_each_side_understands_only_what_the_other_sends() -> None:
    with pytest.raises(FrameError, match="expected messages"):
        framing.command_decoder().feed(bytes(framing.encode([Pong()])))
    with pytest.raises(FrameError, match="expected messages"):
        framing.reply_decoder().feed(bytes(framing.encode([Ping()])))
