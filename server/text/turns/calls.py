"""What every format of tool calls has: how a call begins, how it is read, and what a call is to a client."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from server.text.turns.json_scan import JsonScan
from server.text.turns.pieces import CallIds
from server.text.turns.written_json import raw_parts, with_escapes


class Call(NamedTuple):
    """A call that every client can read: the arguments are an object as JSON."""

    name: str
    arguments: str


class Found(NamedTuple):
    """Calls, and how many of the scan's characters belong to them."""

    calls: list[Call]
    length: int


class NoCall(NamedTuple):
    """What looked like a call is text."""


Verdict = Found | NoCall | None
"""None: more text decides."""


class CallScan(ABC):
    """Reads from the beginning of one call, behind its opening mark."""

    @abstractmethod
    def feed(self, text: str) -> Verdict:
        """The verdict now that ``text`` has come. Not called again after one."""

    def finish(self) -> Verdict:
        """The verdict if no more text comes."""
        return NoCall()


Functions = Mapping[str, Mapping[str, Any]]
"""The schema of each function's parameters, by its name."""


class CallFormat(ABC):
    """How the models of one family write calls."""

    openings: tuple[str, ...]
    """Marks that begin a call wherever they stand."""
    closings: tuple[str, ...] = ()
    """Marks that may follow a call."""
    bare_opening = ""
    """What begins a call directly after another one, and at the start of an answer if `starts_bare`."""
    starts_bare = False
    inner_marks: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        return (*self.openings, *self.closings, *self.inner_marks)

    @abstractmethod
    def scan(self, opening: str, functions: Functions) -> CallScan:
        """For the text behind ``opening``, one of `openings`; for a bare one it is empty, and the text begins there."""

    def ids(self, prefix: str) -> CallIds:
        """Of the calls of an output; ``prefix`` is its own."""
        return lambda index: f"call_{prefix}_{index}"

    def known_id(self, call_id: str) -> str:
        """An id of the client's as the chat template takes it."""
        return call_id

    def written(self, name: str, arguments: Any) -> str:
        """A call of the history, for a template that has no place for calls."""
        return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


class JsonCalls(CallScan):
    """Calls that are one JSON value."""

    def __init__(self, parse: Callable[[str], list[Call] | None], beginnings: str = "{") -> None:
        """``parse`` takes the value's text and returns None for what is no call; ``beginnings`` are characters that
        the value may begin with."""
        self._parse = parse
        self._scan = JsonScan(beginnings)
        self._parts: list[str] = []
        self._length = 0

    def feed(self, text: str) -> Verdict:
        self._parts.append(text)
        end = self._scan.feed(text)
        if self._scan.has_failed:
            return NoCall()
        if end is not None:
            return self._verdict(self._length + end)
        self._length += len(text)
        return None

    def _verdict(self, length: int) -> Verdict:
        try:
            calls = self._parse("".join(self._parts)[:length].strip())
        except (ValueError, RecursionError):
            return NoCall()
        return NoCall() if calls is None else Found(calls, length)


def call_of(text: str, keys: Sequence[str] = ("arguments", "parameters")) -> Call | None:
    """The call that an object with a name is; its arguments stand under the first of ``keys`` that it has.

    Raises ValueError for what is not JSON.
    """
    if not text.startswith("{"):
        return None
    parts = raw_parts(text)
    members = {_loads(name): value for name, value in zip(parts[::2], parts[1::2], strict=True)}
    name = _loads(members.get("name", "null"))
    arguments = next((members[key] for key in keys if key in members), "{}")
    return checked_call(name, arguments) if isinstance(name, str) else None


def checked_call(name: str, arguments: str) -> Call | None:
    """A call with its arguments as they are written. None if no client could read it: the arguments are an object in
    JSON, and all of it can be written in UTF-8. Raises ValueError for what is not JSON."""
    value = _loads(arguments)
    if isinstance(value, str) and value:
        # Some models write the arguments as a string that holds JSON.
        arguments, value = value.strip(), _loads(value)
    if not value:
        arguments, value = "{}", {}
    if not isinstance(value, dict):
        return None
    (name + json.dumps(value, ensure_ascii=False, allow_nan=False)).encode()
    return Call(name, with_escapes(arguments))


def _loads(text: str) -> Any:
    return json.loads(text, strict=False)


def short_hash(text: str, num_characters: int) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass")).hexdigest()[:num_characters]
