"""What single rows hold: their key, their blocks, and what the runner keeps for them. Knows no queues."""

from __future__ import annotations

from typing import Protocol

from server.engine.block_manager import BlockManager
from server.engine.sequence import Sequence


class RowStates(Protocol):
    """What is held for a row outside blocks: the part of `ModelRunner` that follows the scheduler."""

    def release(self, key: int) -> None: ...
    def fork(self, parent_key: int, child_key: int) -> None: ...
    def rewind(self, key: int, num_tokens: int) -> int: ...


class Holdings:
    """Changes blocks and the runner's states of a row together."""

    def __init__(self, blocks: BlockManager, states: RowStates) -> None:
        self._blocks = blocks
        self._states = states
        self._next_key = 0

    def name(self, row: Sequence) -> None:
        """Give a row that holds blocks a key, which no other row ever had."""
        row.key = self._next_key
        self._next_key += 1

    def fork(self, parent: Sequence, child: Sequence, num_tokens: int) -> None:
        """``child``, which holds nothing, goes on from the first ``num_tokens`` that ``parent`` has computed."""
        self._blocks.fork(parent, child, num_tokens)
        self.name(child)
        if num_tokens:
            assert parent.key is not None
            assert child.key is not None
            self._states.fork(parent.key, child.key)

    def rewind(self, row: Sequence, num_tokens: int) -> None:
        """Count only the first ``num_tokens`` as computed, or as many of them as the runner can go back to."""
        assert row.key is not None
        self._blocks.rewind(row, self._states.rewind(row.key, num_tokens))

    def give_back(self, row: Sequence) -> None:
        if row.key is not None:
            self._states.release(row.key)
        row.key = None
        self._blocks.free(row)
