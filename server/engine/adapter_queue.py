"""Requests that wait outside the scheduler until their adapter is held. Knows no sequence."""

from __future__ import annotations

from typing import NamedTuple

from server.adapter_table import AdapterTable
from server.engine.grammar import Grammar
from server.engine.preamble import FittedAdapter
from server.errors import SluiceError
from server.protocol import Failed, Generate


class Ready(NamedTuple):
    """A request that can begin."""

    command: Generate
    grammar: Grammar | None
    adapter: FittedAdapter


class AdapterQueue:
    """Holds each request from the moment that its adapter is missing until it is there, or cannot be had.

    While an adapter waits for room, later requests wait behind those that it is for, whatever their adapters are: else
    those in use would be used for ever.
    """

    def __init__(self, table: AdapterTable[FittedAdapter]) -> None:
        self._table = table
        self._waiting: dict[str, tuple[Generate, Grammar | None]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._waiting

    @property
    def digests(self) -> set[str]:
        """Of the adapters that requests wait for."""
        return {command.adapter for command, _ in self._waiting.values()}

    def take_or_add(self, command: Generate, grammar: Grammar | None) -> FittedAdapter | None:
        """The request's adapter; None if the request has to wait here."""
        deltas = self._table.get(command.adapter)
        if deltas is None or self._table.waits_for_room:
            self._waiting[command.request_id] = (command, grammar)
            return None
        return deltas

    def abort(self, request_id: str) -> None:
        """Forget a request; an unknown id is no error."""
        self._waiting.pop(request_id, None)

    def take_ready(self) -> tuple[list[Ready], list[Failed]]:
        """Requests that can begin, in the order of arrival, and those whose adapter cannot be had."""
        problems, self._table.problems = self._table.problems, {}
        ready: list[Ready] = []
        failed: list[Failed] = []
        for request_id, (command, grammar) in list(self._waiting.items()):
            problem = problems.get(command.adapter)
            if problem is None and command.adapter not in self._table:
                problem = "it was unloaded"
            if problem is not None:
                failed.append(Failed(request_id, SluiceError.code, f"The adapter cannot be loaded: {problem}."))
            elif (deltas := self._table.get(command.adapter)) is not None and not self._table.waits_for_room:
                ready.append(Ready(command, grammar, deltas))
            else:
                continue
            del self._waiting[request_id]
        return ready, failed
