"""How a row's due tokens are cut into the parts that single steps compute."""

from __future__ import annotations

from abc import ABC, abstractmethod

from server.engine.sequence import Sequence

Due = list[tuple[Sequence, int]]
"""Rows and the tokens that each has to compute now."""


class Chunking(ABC):
    """What the scheduler asks when a row lacks more than one token."""

    @abstractmethod
    def size(self, row: Sequence, num_due: int, budget: int) -> int:
        """Of ``num_due`` tokens of the row, how many this step computes. ``budget`` is at least 1."""

    @abstractmethod
    def joint(self, due: Due, budget: int) -> tuple[Due, bool]:
        """What rows compute of whose last tokens one choice is made: all of them their last one, or none of them.

        The second is whether it is all of them: no budget may cut that.
        """

    @abstractmethod
    def shared(self, row: Sequence, num_tokens: int) -> int:
        """Of ``num_tokens`` that rows like ``row`` all begin with, how many one of them computes for all."""

    @abstractmethod
    def restart(self, row: Sequence) -> int:
        """Tokens that stay computed when the row went back, so that the last known one is computed again."""


class FreeChunks(Chunking):
    """As many tokens as the step's budget allows."""

    def size(self, row: Sequence, num_due: int, budget: int) -> int:  # noqa: ARG002
        return min(num_due, budget)

    def joint(self, due: Due, budget: int) -> tuple[Due, bool]:
        if sum(num_tokens for _, num_tokens in due) <= budget:
            return due, True
        return [(row, num_tokens - 1) for row, num_tokens in due if num_tokens > 1], False

    def shared(self, row: Sequence, num_tokens: int) -> int:  # noqa: ARG002
        return num_tokens

    def restart(self, row: Sequence) -> int:
        return row.num_tokens - 1


class FixedChunks(Chunking):
    """Cuts that depend on the row alone, for results that are bitwise the same in every batch.

    A prompt is computed in chunks from one multiple of ``num_tokens`` to the next, and the output token by token, also
    when it is computed again. The last chunk of a step may exceed the budget, and so may the last tokens of rows that
    belong together.
    """

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def size(self, row: Sequence, num_due: int, budget: int) -> int:  # noqa: ARG002
        start = row.num_computed_tokens
        if start >= row.num_prompt_tokens:
            return 1
        stop = min((start // self.num_tokens + 1) * self.num_tokens, row.num_prompt_tokens)
        return min(num_due, stop - start)

    def joint(self, due: Due, budget: int) -> tuple[Due, bool]:
        unfinished = [(row, num_due) for row, num_due in due if self.size(row, num_due, budget) < num_due]
        return (unfinished, False) if unfinished else (due, True)

    def shared(self, row: Sequence, num_tokens: int) -> int:
        return num_tokens if num_tokens >= row.num_prompt_tokens else self._whole(num_tokens)

    def restart(self, row: Sequence) -> int:
        last = row.num_tokens - 1
        if last >= row.num_prompt_tokens:
            return last
        return self._whole(last)

    def _whole(self, num_tokens: int) -> int:
        """The whole chunks among the first tokens of a prompt."""
        return max(0, num_tokens) // self.num_tokens * self.num_tokens
