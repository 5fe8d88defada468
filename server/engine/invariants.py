"""What always holds of the scheduler's queues. For tests."""

from __future__ import annotations

from collections.abc import Collection

from server.engine.block_manager import BlockManager
from server.engine.sequence import Sequence
from server.engine.sequence_group import SequenceGroup


def check(
    running: Collection[SequenceGroup], waiting: Collection[SequenceGroup], blocks: BlockManager, max_running: int
) -> None:
    """Raise AssertionError if an invariant fails."""
    blocks.check(
        [row for group in running for row in group.rows],
        [group.source for group in running if group.source is not None],
    )
    for caller in {group.caller for group in (*running, *waiting)}:
        orders = [group.order for queue in (running, waiting) for group in queue if group.caller == caller]
        if orders != sorted(orders):
            raise AssertionError("a later arrival stands before an earlier one")
    if any(row.num_blocks or row.key is not None for group in waiting for row in group.all_rows):
        raise AssertionError("a waiting sequence holds blocks")
    if any(group.source is not None and group.source.state is not None for group in waiting):
        raise AssertionError("a waiting request holds its source")
    if any(row.key is None for group in running for row in group.rows):
        raise AssertionError("a running row has no key")
    if any(group.trunk is None and group.rows != group.all_rows for group in running):
        raise AssertionError("a row of a running group was forgotten")
    if any(not _has_same_output(sequence) for group in (*running, *waiting) for sequence in group.sequences):
        raise AssertionError("a shadow has another output than its sequence")
    if sum(group.num_rows for group in running) > max_running:
        raise AssertionError("more rows than may run")


def _has_same_output(sequence: Sequence) -> bool:
    return all(row.output_ids == sequence.output_ids for row in sequence.rows)
