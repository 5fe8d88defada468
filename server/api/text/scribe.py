"""Reads one output of a chat as it grows: its pieces, how many of its tokens are reasoning, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from server.api.text.shapes import ending
from server.api.text.turn_plan import TurnPlan
from server.api.text.work import TextWork
from server.serving.output_text import OutputText, OutputToken
from server.text.turns.pieces import Piece, Reasoning


class Scribe:
    """Of one output; each of its tokens is read once, and the counts go to the work."""

    def __init__(self, work: TextWork, plan: TurnPlan, output: OutputText) -> None:
        self._work = work
        self._plan = plan
        self._output = output
        prompt = work.generations[0].prompt
        self._reader = plan.reader(prompt.text, f"{work.record.request_id[:16]}_{output.number}")
        if plan.think_marks is not None and work.reasoning_tokens is None:
            work.reasoning_tokens = 0

    def read(self, tokens: Sequence[OutputToken]) -> list[Piece]:
        """What the output's next tokens, perhaps its last ones, make certain."""
        pieces = self._read(tokens)
        if self._output.finish_reason is not None:
            pieces += self._reader.finish()
        if not self._plan.shows_reasoning:
            pieces = [piece for piece in pieces if not isinstance(piece, Reasoning)]
        return list(_joined(pieces)) if len(pieces) > 1 else pieces

    def _read(self, tokens: Sequence[OutputToken]) -> list[Piece]:
        if self._work.reasoning_tokens is None:
            return self._reader.push("".join([token.text for token in tokens]))
        pieces: list[Piece] = []
        for token in tokens:
            was_reasoning = self._reader.is_reasoning
            pieces += self._reader.push(token.text)
            self._work.reasoning_tokens += was_reasoning or self._reader.is_reasoning
        return pieces

    @property
    def has_called(self) -> bool:
        """Whether the output is one that asks for results of calls, which are whole."""
        return self._output.finish_reason == "stop" and self._reader.num_calls > 0 and self._reader.is_whole

    def ending(self) -> dict[str, Any]:
        """Of an output that has ended and been read."""
        told = ending(self._output)
        return {**told, "finish_reason": "tool_calls"} if self.has_called else told


def _joined(pieces: Iterable[Piece]) -> Iterable[Piece]:
    """Neighbours of one kind are one."""
    held: str | Reasoning | None = None
    for piece in pieces:
        if isinstance(piece, str) and isinstance(held, str):
            held += piece
        elif isinstance(piece, Reasoning) and isinstance(held, Reasoning):
            held = Reasoning(held.text + piece.text)
        else:
            if held is not None:
                yield held
            held = piece if isinstance(piece, str | Reasoning) else None
            if held is None:
                yield piece
    if held is not None:
        yield held
