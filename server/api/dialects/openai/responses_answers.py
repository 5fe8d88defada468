"""An output as the items of ``/v1/responses``, whole or in named and numbered events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.api.dialects.openai.responses_body import ResponsesBody
from server.api.http.json_reply import encode
from server.api.http.sse import data_event
from server.api.text.scribe import Scribe
from server.api.text.turn_plan import TurnPlan
from server.api.text.work import StreamWriter, TextWork
from server.serving.output_text import OutputToken
from server.text.turns.pieces import CallDelta, Piece, Reasoning

Event = tuple[str, dict[str, Any]]
"""Name and fields."""


def response_object(work: TextWork, body: ResponsesBody, items: Items | None) -> dict[str, Any]:
    """The whole response. Without items it is the response before the first token."""
    params = work.generations[0].prompt.params
    told = None if items is None else items.scribe.ending()
    is_cut = told is not None and told["finish_reason"] not in ("stop", "tool_calls")
    reason = "content_filter" if is_cut and told and told["finish_reason"] != "length" else "max_output_tokens"
    return {
        "id": f"resp_{work.record.request_id}",
        "object": "response",
        "created_at": work.created,
        "status": "in_progress" if items is None else "incomplete" if is_cut else "completed",
        "error": None,
        "incomplete_details": {"reason": reason} if is_cut else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": work.record.model,
        "output": [] if items is None else items.done,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": body.reasoning and body.reasoning.effort, "summary": None},
        "store": False,
        "temperature": params.temperature if params.do_sample else 0.0,
        "text": {"format": {"type": "text"}} if body.text is None else body.text.model_dump(by_alias=True),
        "tool_choice": _chosen(body),
        "tools": [tool.model_dump() for tool in body.tools or []],
        "top_p": params.top_p,
        "truncation": "disabled",
        "usage": None if items is None else _usage(work),
    }


def _chosen(body: ResponsesBody) -> Any:
    choice = body.tool_choice
    return choice or "auto" if choice is None or isinstance(choice, str) else choice.model_dump()


def _usage(work: TextWork) -> dict[str, Any]:
    counts = work.usage()
    return {
        "input_tokens": counts.prompt_tokens,
        "input_tokens_details": counts.prompt_tokens_details,
        "output_tokens": counts.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": work.reasoning_tokens or 0},
        "total_tokens": counts.total_tokens,
    }


class Items:
    """The items of one output, in order: each takes pieces of one kind until another kind, or another call, begins."""

    def __init__(self, work: TextWork, plan: TurnPlan) -> None:
        self.done: list[dict[str, Any]] = []
        self.scribe = Scribe(work, plan, work.generations[0].outputs[0])
        self._request_id = work.record.request_id
        self._open: dict[str, Any] | None = None
        """The item that grows; its text or arguments are in `_texts`."""
        self._texts: list[str] = []

    def read(self, tokens: Sequence[OutputToken]) -> Iterator[Event]:
        for piece in self.scribe.read(tokens):
            yield from self._add(piece)

    def end(self) -> Iterator[Event]:
        """All events that are left. An output of nothing is an empty message."""
        if self._open is None and not self.done:
            yield from self._begin(self._message())
        if self._open is not None:
            reason = self.scribe.ending()["finish_reason"]
            yield from self._close("completed" if reason in ("stop", "tool_calls") else "incomplete")

    def _add(self, piece: Piece) -> Iterator[Event]:
        kind = (
            "function_call"
            if isinstance(piece, CallDelta)
            else "reasoning"
            if isinstance(piece, Reasoning)
            else "message"
        )
        if self._open is None or self._open["type"] != kind or (isinstance(piece, CallDelta) and piece.id is not None):
            if self._open is not None:
                yield from self._close("completed")
            yield from self._begin(self._new(piece))
        text = piece if isinstance(piece, str) else piece.text if isinstance(piece, Reasoning) else piece.arguments
        if text:
            self._texts.append(text)
            yield self._delta(text)

    def _new(self, piece: Piece) -> dict[str, Any]:
        if isinstance(piece, str):
            return self._message()
        if isinstance(piece, Reasoning):
            return {"type": "reasoning", "id": self._id("rs"), "status": "in_progress", "summary": [], "content": []}
        named = {"call_id": piece.id, "name": piece.name, "arguments": ""}
        return {"type": "function_call", "id": self._id("fc"), "status": "in_progress", **named}

    def _message(self) -> dict[str, Any]:
        return {"type": "message", "id": self._id("msg"), "status": "in_progress", "role": "assistant", "content": []}

    def _id(self, prefix: str) -> str:
        number = len(self.done)
        return f"{prefix}_{self._request_id}" + (f"_{number}" if number else "")

    def _place(self, item: Mapping[str, Any]) -> dict[str, Any]:
        place = {"item_id": item["id"], "output_index": len(self.done)}
        return place if item["type"] == "function_call" else {**place, "content_index": 0}

    def _begin(self, item: dict[str, Any]) -> Iterator[Event]:
        self._open, self._texts = item, []
        yield "response.output_item.added", {"output_index": len(self.done), "item": item}
        if item["type"] != "function_call":
            yield "response.content_part.added", {**self._place(item), "part": _part(item, "")}

    def _delta(self, text: str) -> Event:
        assert self._open is not None
        fields = {**self._place(self._open), "delta": text}
        if self._open["type"] == "message":
            return "response.output_text.delta", {**fields, "logprobs": []}
        kind = "function_call_arguments" if self._open["type"] == "function_call" else "reasoning_text"
        return f"response.{kind}.delta", fields

    def _close(self, status: str) -> Iterator[Event]:
        assert self._open is not None
        item, text = {**self._open, "status": status}, "".join(self._texts)
        place = self._place(item)
        if item["type"] == "function_call":
            item["arguments"] = text
            yield "response.function_call_arguments.done", {**place, "name": item["name"], "arguments": text}
        else:
            part = _part(item, text)
            item["content"] = [part]
            if item["type"] == "message":
                yield "response.output_text.done", {**place, "text": text, "logprobs": []}
            else:
                yield "response.reasoning_text.done", {**place, "text": text}
            yield "response.content_part.done", {**place, "part": part}
        yield "response.output_item.done", {"output_index": len(self.done), "item": item}
        self.done.append(item)
        self._open = None


def _part(item: Mapping[str, Any], text: str) -> dict[str, Any]:
    if item["type"] == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class Events(StreamWriter):
    """Named and numbered events: a response, its items, their parts."""

    def __init__(self, work: TextWork, body: ResponsesBody, plan: TurnPlan) -> None:
        self._work = work
        self._body = body
        self._items = Items(work, plan)
        self._number = 0

    def _written(self, name: str, fields: Mapping[str, Any]) -> bytes:
        event = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {name}\n".encode() + data_event(encode(event))

    def step(self, number: int, tokens: Mapping[int, Sequence[OutputToken]]) -> bytes:  # noqa: ARG002
        started = b"" if self._number else self._start()
        return started + b"".join([self._written(*event) for event in self._items.read(tokens[0])])

    def _start(self) -> bytes:
        begun = {"response": response_object(self._work, self._body, None)}
        return self._written("response.created", begun) + self._written("response.in_progress", begun)

    def end(self) -> bytes:
        last = b"".join([self._written(*event) for event in self._items.end()])
        response = response_object(self._work, self._body, self._items)
        return last + self._written(f"response.{response['status']}", {"response": response})

    def empty(self) -> None:
        """Every event of this shape says something."""

    def error(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {"type": "error", "sequence_number": self._number, **body}
