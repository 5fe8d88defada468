"""Reasoning: what a model writes between two marks before it answers."""

from __future__ import annotations

from typing import NamedTuple

from server.text.turns.pieces import Piece, Reader, Reasoning


class ThinkMarks(NamedTuple):
    """What stands around the reasoning."""

    start: str
    end: str

    def is_open(self, prompt: str) -> bool:
        """Whether the prompt ends within reasoning: many templates write the first mark themselves."""
        return prompt.rstrip().endswith(self.start)

    def is_unfinished(self, answer: str) -> bool:
        """Whether an answer that began is still reasoning."""
        return answer.lstrip().startswith(self.start) and self.end not in answer


KNOWN_MARKS = (
    ThinkMarks("<think>", "</think>"),
    ThinkMarks("[THINK]", "[/THINK]"),
    ThinkMarks("<seed:think>", "</seed:think>"),
    ThinkMarks("<|START_THINKING|>", "<|END_THINKING|>"),
)


def think_marks_of(chat_template: str) -> ThinkMarks | None:
    """The marks that the template's model writes around its reasoning, if it reasons."""
    return next((marks for marks in KNOWN_MARKS if marks.end in chat_template), None)


class ThinkingReader(Reader):
    """Reasoning at the start of an output, and the answer behind it; white space around the marks goes.

    Marks that come later are text of the answer.
    """

    def __init__(self, marks: ThinkMarks, answer: Reader, *, is_open: bool) -> None:
        """``is_open``: the first mark stands in the prompt."""
        self._marks = marks
        self._answer = answer
        self._is_open = is_open
        self._held = ""
        self._has_started = False
        """It is decided whether there is reasoning."""
        self._has_reasoning_text = False
        self._follows_reasoning = False

    def push(self, text: str) -> list[Piece]:
        if self._has_started and not self.is_reasoning:
            return self._answered(text)
        self._held += text
        if not self._has_started and not self._start():
            return []
        return self._reason() if self.is_reasoning else self._answered(self._taken())

    def finish(self) -> list[Piece]:
        if self.is_reasoning or (self._is_open and not self._has_started):
            text = self._taken().strip() if not self._has_reasoning_text else self._taken().rstrip()
            return [Reasoning(text)] if text else []
        pieces = [*self._answered(self._taken()), *self._answer.finish()]
        self._copy_state()
        return pieces

    def _start(self) -> bool:
        """Whether it is decided what the output begins with."""
        begun = self._held.lstrip()
        if not begun or (begun != self._marks.start and self._marks.start.startswith(begun)):
            return False
        self._has_started = True
        self.is_reasoning = self._is_open or begun.startswith(self._marks.start)
        if self.is_reasoning:
            self._held = begun.removeprefix(self._marks.start)
        return True

    def _reason(self) -> list[Piece]:
        end = self._held.find(self._marks.end)
        if end >= 0:
            text, rest = self._held[:end].rstrip(), self._held[end + len(self._marks.end) :]
            self._held, self.is_reasoning, self._follows_reasoning = "", False, True
            return [*self._reasoning(text), *self._answered(rest)]
        cut = self._num_certain()
        certain, self._held = self._held[:cut], self._held[cut:]
        return self._reasoning(certain)

    def _num_certain(self) -> int:
        """Characters of the held text before white space and what may become the end mark."""
        held, mark = self._held, self._marks.end
        longest = min(len(held), len(mark) - 1)
        tail = next((n for n in range(longest, 0, -1) if mark.startswith(held[-n:])), 0)
        return len(held[: len(held) - tail].rstrip())

    def _reasoning(self, text: str) -> list[Piece]:
        if not self._has_reasoning_text:
            text = text.lstrip()
        self._has_reasoning_text |= bool(text)
        return [Reasoning(text)] if text else []

    def _answered(self, text: str) -> list[Piece]:
        if self._follows_reasoning:
            text = text.lstrip()
            self._follows_reasoning = not text
        pieces = self._answer.push(text)
        self._copy_state()
        return pieces

    def _copy_state(self) -> None:
        """Of the answer's reader, which is what counts once there is an answer."""
        self.num_calls, self.is_whole = self._answer.num_calls, self._answer.is_whole
        self.is_over = self._answer.is_over

    def _taken(self) -> str:
        held, self._held = self._held, ""
        return held
