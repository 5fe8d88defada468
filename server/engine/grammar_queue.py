"""Requests that wait outside the scheduler until their grammar is compiled. Knows no sequence."""

from __future__ import annotations

from server.engine.grammar import Grammar, GrammarCompiler
from server.errors import UnsupportedGrammar
from server.protocol import Failed, Generate

LONGEST_WAIT_S = 0.01
"""What an engine that has nothing else to do waits at a time: a new request is seen no later."""


class GrammarQueue:
    """Holds each request from its arrival until its grammar is there, has failed, or nobody wants it any more."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._waiting: dict[str, Generate] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._waiting

    def add(self, command: Generate) -> None:
        self._waiting[command.request_id] = command

    def abort(self, request_id: str) -> None:
        """Forget a request; an unknown id is no error."""
        if (command := self._waiting.pop(request_id, None)) is None:
            return
        grammar = command.params.grammar
        if grammar is not None and all(other.params.grammar != grammar for other in self._waiting.values()):
            self._compiler.forget(grammar)

    def take_ready(self, *, is_idle: bool) -> tuple[list[tuple[Generate, Grammar]], list[Failed]]:
        """Requests that can begin, in the order of arrival, and those that cannot be served."""
        if is_idle and self._waiting:
            self._compiler.wait(LONGEST_WAIT_S)
        ready: list[tuple[Generate, Grammar]] = []
        failed: list[Failed] = []
        for command in list(self._waiting.values()):
            grammar = command.params.grammar
            assert grammar is not None
            try:
                if not self._compiler.ready(grammar):
                    continue
                ready.append((command, self._compiler.get(grammar)))
            except UnsupportedGrammar as error:
                failed.append(Failed(command.request_id, error.code, str(error)))
            del self._waiting[command.request_id]
        return ready, failed
