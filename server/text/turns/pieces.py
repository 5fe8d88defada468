"""What one output of a chat consists of: reasoning, text and calls, in order; and the readers that find them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

CallIds = Callable[[int], str]
"""The id of an output's call by its number."""


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model writes before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A part of a call: the first has the id and the name, the others more of the arguments."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


Piece = str | Reasoning | CallDelta
"""A str is text of the answer itself."""


class Reader(ABC):
    """Takes one output's text apart. `push` and `finish` together return all of it, in order.

    What they return does not depend on how the text was cut into pieces, except where adjacent pieces are cut.
    """

    num_calls = 0
    """Calls found so far."""
    is_whole = True
    """Whether the last call has all of its arguments."""
    is_over = False
    """Whether the rest of the output is dropped: it has all the calls that it may have."""
    is_reasoning = False
    """Whether the text now is reasoning."""

    @abstractmethod
    def push(self, text: str) -> list[Piece]:
        """What this text makes certain."""

    @abstractmethod
    def finish(self) -> list[Piece]:
        """The rest: the output has ended."""


class PlainText(Reader):
    """There is nothing but text."""

    def push(self, text: str) -> list[Piece]:
        return [text] if text else []

    def finish(self) -> list[Piece]:
        return []
