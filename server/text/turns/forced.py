"""Calls that a grammar forces: the whole output is one call, so there are no marks to look for."""

from __future__ import annotations

import json
import re

from server.text.turns.json_scan import JsonScan
from server.text.turns.pieces import CallDelta, CallIds, Piece, Reader


class OneCall(Reader):
    """The whole output is the arguments of one known function."""

    def __init__(self, name: str, ids: CallIds) -> None:
        self._name = name
        self._ids = ids
        self._scan = JsonScan()

    def push(self, text: str) -> list[Piece]:
        if not text:
            return []
        is_first, self.num_calls = not self.num_calls, 1
        self.is_whole = self._scan.feed(text) is not None or (self.is_whole and not is_first)
        return [CallDelta(0, text, self._ids(0), self._name) if is_first else CallDelta(0, text)]

    def finish(self) -> list[Piece]:
        return []


class ChosenCall(Reader):
    """The whole output is ``{"name": ..., "arguments": ...}``."""

    HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\S)')

    def __init__(self, ids: CallIds) -> None:
        self._ids = ids
        self._held = ""
        self._arguments = JsonScan()

    def push(self, text: str) -> list[Piece]:
        if self.num_calls:
            return self._more(text)
        self._held += text
        head = self.HEAD.match(self._held)
        if head is None:
            return []
        self.num_calls, self.is_whole = 1, False
        return [CallDelta(0, "", self._ids(0), json.loads(head[1])), *self._more(self._held[head.end() :])]

    def _more(self, text: str) -> list[Piece]:
        """Of the arguments; what follows them belongs to the object around them."""
        if self.is_whole or not text:
            return []
        end = self._arguments.feed(text)
        self.is_whole = end is not None
        return [CallDelta(0, text[:end])]

    def finish(self) -> list[Piece]:
        held, self._held = self._held, ""
        return [held] if held and not self.num_calls else []
