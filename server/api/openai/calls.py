"""Tool calls in an output's text, found while it grows; knows neither HTTP nor where the text comes from."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.api.openai.messages import CALL_END, CALL_START

CallIds = Callable[[int], str]
"""The id of an output's call by its number."""


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A part of a call: its first one has id and name, the others more of the arguments."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


Piece = str | CallDelta
"""Text for the reader, or a part of a call."""


class Reader(ABC):
    """Takes one output's text apart. The pieces of `push` and `finish` are all of it, in order."""

    def __init__(self) -> None:
        self.num_calls = 0

    @abstractmethod
    def push(self, text: str) -> list[Piece]:
        """What this text makes certain."""

    @abstractmethod
    def finish(self, is_cut: bool) -> list[Piece]:
        """The rest; ``is_cut`` if the output was longer than it may be."""


class PlainText(Reader):
    """There are no calls."""

    def push(self, text: str) -> list[Piece]:
        return [text] if text else []

    def finish(self, is_cut: bool) -> list[Piece]:  # noqa: ARG002
        return []


class OneCall(Reader):
    """The whole output is the arguments of one known function: a grammar sees to it."""

    def __init__(self, name: str, ids: CallIds) -> None:
        super().__init__()
        self._name = name
        self._ids = ids

    def push(self, text: str) -> list[Piece]:
        if not text:
            return []
        is_first, self.num_calls = not self.num_calls, 1
        return [CallDelta(0, text, self._ids(0), self._name) if is_first else CallDelta(0, text)]

    def finish(self, is_cut: bool) -> list[Piece]:  # noqa: ARG002
        return []


class ChosenCall(Reader):
    """The whole output is ``{"name": ..., "arguments": ...}``: a grammar sees to it."""

    HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')
    TAIL = re.compile(r"[\s}]*\Z")
    """What may be the end of the object around the arguments."""

    def __init__(self, ids: CallIds) -> None:
        super().__init__()
        self._ids = ids
        self._held = ""
        self._has_arguments = False

    def push(self, text: str) -> list[Piece]:
        self._held += text
        if self.num_calls:
            return self._arguments()
        head = self.HEAD.match(self._held)
        if head is None:
            return []
        self.num_calls, self._held = 1, self._held[head.end() :]
        return [CallDelta(0, "", self._ids(0), json.loads(head[1])), *self._arguments()]

    def _arguments(self) -> list[Piece]:
        if not self._has_arguments:
            self._held = self._held.lstrip()
        tail = self.TAIL.search(self._held)
        cut = len(self._held) if tail is None else tail.start()
        certain, self._held = self._held[:cut], self._held[cut:]
        self._has_arguments |= bool(certain)
        return [CallDelta(0, certain)] if certain else []

    def finish(self, is_cut: bool) -> list[Piece]:
        held, self._held = self._held, ""
        if not self.num_calls:
            return [held] if held else []
        rest = held if is_cut else held.rstrip().removesuffix("}").rstrip()
        return [CallDelta(0, rest)] if rest else []


class HermesCalls(Reader):
    """Text with ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` in it, as the model likes.

    A call is told when it is whole. What looks like one and is none stays text; white space around calls goes.
    """

    MAY_BEGIN = re.compile(
        r"\s*(?:" + "|".join(re.escape(CALL_START[:n]) for n in range(len(CALL_START), 0, -1)) + r")?\Z"
    )
    """White space, and what may become a call's start."""

    def __init__(self, ids: CallIds) -> None:
        super().__init__()
        self._ids = ids
        self._held = ""
        """Text that may belong to a call: white space and a start that is not whole, or all since the start."""
        self._is_inside = False

    def push(self, text: str) -> list[Piece]:
        self._held += text
        pieces: list[Piece] = []
        while (more := self._next()) is not None:
            pieces += more
        return pieces

    def _next(self) -> list[Piece] | None:
        """None once nothing more is certain."""
        if self._is_inside:
            end = self._held.find(CALL_END)
            return None if end < 0 else self._call(end + len(CALL_END))
        start = self._held.find(CALL_START)
        if start >= 0:
            before = self._held[:start].rstrip()
            self._is_inside, self._held = True, self._held[start:]
            return [before] if before else []
        held = self.MAY_BEGIN.search(self._held)
        cut = len(self._held) if held is None else held.start()
        certain, self._held = self._held[:cut], self._held[cut:]
        return [certain] if certain else None

    def _call(self, end: int) -> list[Piece]:
        """The call, or text, up to ``end``."""
        self._is_inside = False
        whole, self._held = self._held[:end], self._held[end:]
        function = _function(whole.removeprefix(CALL_START).removesuffix(CALL_END))
        if function is None:
            return [whole]
        self.num_calls += 1
        index = self.num_calls - 1
        return [CallDelta(index, function[1], self._ids(index), function[0])]

    def finish(self, is_cut: bool) -> list[Piece]:  # noqa: ARG002
        if self._is_inside:
            # A model may end its turn, or a stop string the output, where the call's end mark would stand.
            pieces = self._call(len(self._held))
        else:
            pieces = [] if self.num_calls and not self._held.strip() else [self._held] if self._held else []
        self._held = ""
        return pieces


def _function(text: str) -> tuple[str, str] | None:
    """Name and arguments of a call that every client can read: an object in JSON and in UTF-8."""
    try:
        call: Any = json.loads(text)
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return None
        arguments = call.get("arguments", call.get("parameters"))
        if not isinstance(arguments, (str, dict, type(None))):
            return None
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments or {}, ensure_ascii=False, allow_nan=False)
        f"{call['name']}{arguments}".encode()
    except (ValueError, RecursionError):
        return None
    return call["name"], arguments
