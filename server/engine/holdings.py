"""What rows hold: their key, their blocks, and what the runner keeps for them. Knows no queues."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from server.engine.batch import Batch
from server.engine.batch_inputs import IntArray
from server.engine.block_manager import BlockManager
from server.engine.lengths import LengthRule
from server.engine.sequence import Sequence
from server.engine.sequence_group import SequenceGroup


class RowStates(Protocol):
    """What is held for a row outside blocks: the part of `ModelRunner` that follows the scheduler."""

    def release(self, key: int) -> None: ...
    def fork(self, parent_key: int, child_key: int) -> None: ...
    def rewind(self, key: int, num_tokens: int) -> int: ...


class Holdings:
    """Changes blocks and the runner's states of a row together."""

    def __init__(self, blocks: BlockManager, states: RowStates, rule: LengthRule | None = None) -> None:
        self._blocks = blocks
        self._states = states
        self._rule = rule
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

    def forked(self, sequence: Sequence) -> Sequence:
        """A sequence with the same output so far, whose rows go on from what ``sequence``'s have computed."""
        child = sequence.fork()
        for parent_row, row in zip(sequence.rows, child.rows, strict=True):
            self.fork(parent_row, row, parent_row.num_computed_tokens)
        return child

    def place(self, group: SequenceGroup, shared: Callable[[Sequence, int], int], num_spare: int) -> bool:
        """Give the leaders of a group that waits their blocks and keys; ``shared`` is that of `SequenceGroup.begin`.

        False, and nothing changed, if not ``num_spare`` blocks and those of the group's later rows would remain.
        """
        self.decide(group.all_rows)
        if group.source is not None:
            num_first = sum(self._blocks.blocks_for(row.num_tokens) for row in group.leaders)
            if not self._blocks.hold_source(group.source, num_spare + num_first):
                return False
        group.begin(shared)
        num_spare += group.num_later_blocks(self._blocks.block_size) or group.num_rows - len(group.rows)
        for row in group.rows:
            if not self._blocks.admit(row, num_spare=num_spare):
                self.give_all_back(group)
                return False
        for row in group.rows:
            self.name(row)
        return True

    def spread(self, group: SequenceGroup) -> bool:
        """Let the group's other rows go on from the trunk, if it is computed."""
        if any(group.num_due_tokens(row) > 0 for row in group.rows):
            return False
        for sequence in group.sequences[1:]:
            for leader, row in zip(group.leaders, sequence.rows, strict=True):
                self.fork(leader, row, group.trunk_of(row))
        group.spread()
        if group.drops_leader and len(group.sequences) > 1:
            self.drop(group, group.sequences[0])
        group.drops_leader = False
        return True

    def reproduce(self, group: SequenceGroup, parents: list[int]) -> list[Sequence]:
        """New sequences of a running group, each continuing ``group.sequences[parent]``.

        Used twice, a parent is forked; used by nobody, it gives its blocks back.
        """
        children: list[Sequence] = []
        used: set[int] = set()
        for parent in parents:
            sequence = group.sequences[parent]
            children.append(sequence if parent not in used else self.forked(sequence))
            used.add(parent)
        for i, sequence in enumerate(group.sequences):
            if i not in used:
                for row in sequence.rows:
                    self.give_back(row)
        group.sequences = children
        group.spread()
        return children

    def drop(self, group: SequenceGroup, sequence: Sequence) -> None:
        """One output of several is not wanted any more."""
        for row in group.remove(sequence):
            self.give_back(row)

    def give_all_back(self, group: SequenceGroup) -> None:
        """The group runs no more, and its rows hold nothing."""
        for row in group.rows:
            self.give_back(row)
        if group.source is not None:
            self._blocks.release_source(group.source)
        group.leave()

    def rewind(self, row: Sequence, num_tokens: int) -> None:
        """Count only the first ``num_tokens`` as computed, or as many of them as the runner can go back to."""
        assert row.key is not None
        self._blocks.rewind(row, self._states.rewind(row.key, num_tokens))

    def decide(self, rows: Iterable[Sequence]) -> None:
        """Set the lengths that decide the rotary factors of rows that hold nothing."""
        for row in rows:
            self._blocks.decide(row, self._deciding_length(row))

    def restart(self, group: SequenceGroup, shared: Callable[[Sequence, int], int]) -> None:
        """A running group holds nothing, and what its rows have in common is computed once."""
        for row in group.rows:
            self.give_back(row)
        self.decide(group.all_rows)
        group.begin(shared)
        for row in group.rows:
            self.name(row)

    def follow_lengths(self, group: SequenceGroup, shared: Callable[[Sequence, int], int]) -> None:
        """Let rows of a running group begin again whose lengths decide other rotary factors by now.

        They keep their place in the queue, and hold nothing. ``shared`` is that of `SequenceGroup.begin`.
        """
        changed = [row for row in group.rows if row.deciding_length != self._deciding_length(row)]
        if len(changed) == len(group.rows) > len(group.leaders):
            self.restart(group, shared)
            return
        for row in changed:
            self.give_back(row)
        self.decide(changed)
        for row in changed:
            self.name(row)

    def add_drafts(self, batch: Batch, drafts: Iterable[IntArray]) -> None:
        """Let rows compute guesses behind their last tokens, where factors stay and there are blocks."""
        for i, draft_ids in enumerate(drafts):
            share, row = batch.shares[i], batch.shares[i].sequence
            if self._rule is not None:
                draft_ids = draft_ids[: self._rule.num_more_alike(row.num_tokens, len(draft_ids))]
            if len(draft_ids) and self._blocks.grow(row, row.num_tokens + len(draft_ids)):
                batch.shares[i] = share._replace(draft_ids=draft_ids, num_logits=1 + len(draft_ids))
                batch.num_drafted += len(draft_ids)

    def most_blocks(self, group: SequenceGroup) -> int:
        """Blocks of the group's source and longest outputs, whose last tokens are never computed."""
        num_blocks = 0 if group.source is None else self._blocks.blocks_for(len(group.source.ids))
        for leader in group.leaders:
            num_shared = (leader.num_prompt_tokens - 1) // self._blocks.block_size
            if self._rule is not None and group.search is None:
                # While some outputs are longer than the switch and others are not, they share nothing.
                may_part = self._rule.may_part(leader.num_prompt_tokens, leader.stopping.max_tokens)
                num_shared = 0 if may_part else num_shared
            num_own = self._blocks.blocks_for(leader.stopping.max_tokens - 1) - num_shared
            num_blocks += num_shared + num_own * (group.num_rows // len(group.leaders))
        return num_blocks

    def _deciding_length(self, row: Sequence) -> int:
        return 0 if self._rule is None else self._rule.deciding_length(row.num_prompt_tokens, row.num_tokens)

    def give_back(self, row: Sequence) -> None:
        if row.key is not None:
            self._states.release(row.key)
        row.key = None
        self._blocks.free(row)
