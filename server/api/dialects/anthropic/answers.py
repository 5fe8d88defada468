"""An output as Anthropic's message of blocks, whole or in named events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from pydantic_core import from_json

from server.api.http.json_reply import encode
from server.api.http.sse import data_event
from server.api.text.scribe import Scribe
from server.api.text.turn_plan import TurnPlan
from server.api.text.work import StreamWriter, TextWork
from server.serving.output_text import OutputToken
from server.text.turns.json_scan import JsonScan
from server.text.turns.pieces import CallDelta, Piece, Reasoning

STOP_REASONS = {"length": "max_tokens", "content_filter": "refusal", "tool_calls": "tool_use"}
STARTS: dict[str, dict[str, Any]] = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}

Event = dict[str, Any]


def message(work: TextWork, blocks: Blocks) -> dict[str, Any]:
    """The whole answer, of blocks that have been read to their end."""
    return {**_head(work), "content": blocks.done, **_ending(blocks.scribe)}


def _head(work: TextWork) -> dict[str, Any]:
    name = {"id": f"msg_{work.record.request_id}", "type": "message", "role": "assistant", "model": work.record.model}
    return {**name, "content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(work)}


def _usage(work: TextWork) -> dict[str, Any]:
    """What comes from the prefix cache is counted apart, and nothing is written to a cache for a price."""
    (generation,) = work.generations
    num_cached, num_thinking = generation.cached_tokens, work.reasoning_tokens
    return {
        "input_tokens": len(generation.prompt.input_ids) - num_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": num_cached,
        "output_tokens": generation.num_tokens,
        **({} if num_thinking is None else {"output_tokens_details": {"thinking_tokens": num_thinking}}),
    }


def _ending(scribe: Scribe) -> dict[str, Any]:
    told = scribe.ending()
    stop = told["stop_reason"] if told["finish_reason"] == "stop" else None
    reason = "end_turn" if stop is None else "stop_sequence"
    return {
        "stop_reason": STOP_REASONS.get(told["finish_reason"], reason),
        "stop_sequence": stop if isinstance(stop, str) else None,
    }


class Blocks:
    """The blocks of one output, in order: each takes pieces of one kind until another kind, or call, begins."""

    def __init__(self, work: TextWork, plan: TurnPlan) -> None:
        self.done: list[dict[str, Any]] = []
        self.scribe = Scribe(work, plan, work.generations[0].outputs[0])
        self._open: dict[str, Any] | None = None
        """The block that grows; its text or input is in `_texts`."""
        self._texts: list[str] = []

    def read(self, tokens: Sequence[OutputToken]) -> Iterator[Event]:
        for piece in self.scribe.read(tokens):
            yield from self._add(piece)

    def end(self) -> Iterator[Event]:
        """All events that are left. An output of nothing is an empty text."""
        if self._open is None and not self.done:
            yield from self._begin({"type": "text", **STARTS["text"]})
        if self._open is not None:
            yield from self._close()

    def _add(self, piece: Piece) -> Iterator[Event]:
        block, delta = _block_and_delta(piece)
        is_new_call = isinstance(piece, CallDelta) and piece.id is not None
        if self._open is None or self._open["type"] != block["type"] or is_new_call:
            if self._open is not None:
                yield from self._close()
            yield from self._begin(block)
        kind, text = delta
        if text:
            self._texts.append(text)
            told = {"type": f"{kind}_delta", "partial_json" if kind == "input_json" else kind: text}
            yield {"type": "content_block_delta", "index": len(self.done), "delta": told}

    def _begin(self, block: dict[str, Any]) -> Iterator[Event]:
        self._open, self._texts = block, []
        yield {"type": "content_block_start", "index": len(self.done), "content_block": block}

    def _close(self) -> Iterator[Event]:
        assert self._open is not None
        yield {"type": "content_block_stop", "index": len(self.done)}
        text = "".join(self._texts)
        if self._open["type"] == "tool_use":
            held: dict[str, Any] = {"input": _input(text)}
        else:
            held = {self._open["type"]: text}
        self.done.append({**self._open, **held})
        self._open = None


def _input(text: str) -> Any:
    """As the model wrote it. Of an input that was cut: what the client's own library reads of a stream's beginning."""
    if JsonScan().feed(text) is not None:
        return msgspec.Raw(text.encode())
    try:
        return from_json(text.strip() or "{}", allow_partial="trailing-strings")
    except ValueError:
        return {}


def _block_and_delta(piece: Piece) -> tuple[dict[str, Any], tuple[str, str]]:
    """The block that begins with a piece, and the kind and text of what it adds."""
    if isinstance(piece, str):
        return {"type": "text", **STARTS["text"]}, ("text", piece)
    if isinstance(piece, Reasoning):
        return {"type": "thinking", **STARTS["thinking"]}, ("thinking", piece.text)
    return {"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}}, ("input_json", piece.arguments)


class Events(StreamWriter):
    """Named events: a message, its blocks, what they grow by."""

    def __init__(self, work: TextWork, plan: TurnPlan) -> None:
        self._work = work
        self._blocks = Blocks(work, plan)
        self._is_started = False

    def step(self, number: int, tokens: Mapping[int, Sequence[OutputToken]]) -> bytes:  # noqa: ARG002
        events = [] if self._is_started else [{"type": "message_start", "message": _head(self._work)}]
        self._is_started = True
        return b"".join(map(named_event, [*events, *self._blocks.read(tokens[0])]))

    def end(self) -> bytes:
        last = list(self._blocks.end())
        ended = {"type": "message_delta", "delta": _ending(self._blocks.scribe), "usage": _usage(self._work)}
        return b"".join(map(named_event, [*last, ended, {"type": "message_stop"}]))

    def empty(self) -> bytes:
        return named_event({"type": "ping"})


def named_event(event: Mapping[str, Any]) -> bytes:
    """An event that has its own type for a name."""
    return f"event: {event['type']}\n".encode() + data_event(encode(event))
