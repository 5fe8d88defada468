"""Which parts of their sources groups have encoded in a step, and how far sources have come. Knows no tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import ceil

from server.engine.batch import Batch, SourceShare
from server.engine.encoding import EncoderPasses, SourcePart
from server.engine.pacing import Pacing
from server.engine.sequence_group import SequenceGroup
from server.engine.sources import Source, distinct

MOST_BEGUN = 4
"""Sources that have begun and are not complete, at most: the runner keeps states of all of their tokens.

The last place is for one that is shorter than all others, so that long ones hold up no short one."""


class SourceParts:
    """Part of the `Scheduler`."""

    def __init__(self, passes: EncoderPasses, pacing: Pacing | None) -> None:
        self._passes = passes
        self._pacing = pacing

    def add(self, batch: Batch, group: SequenceGroup, budget: int, running: Iterable[SequenceGroup]) -> int:
        """Let the step encode as much of the group's source as the budget allows. Returns what that takes of it.

        0 where another group of the step has the same source, or where too many have begun.
        """
        source = group.source
        assert source is not None
        if batch.part_of(source) is not None:
            return 0
        weight = 1.0 if self._pacing is None else self._pacing.source_weight
        length, state = len(source.ids), source.held
        stop = self._passes.reach(length, state.num_units, budget / weight)
        part = SourcePart(source, stop, is_last=stop == self._passes.num_units(length))
        if not part.is_last and not state.is_begun and not _may_begin(source, _begun(batch, running)):
            return 0
        num_tokens = self._passes.num_tokens(length, state.num_units, stop)
        batch.source_shares.append(SourceShare(part, group, num_tokens))
        return ceil(num_tokens * weight)

    def computed(self, batch: Batch) -> None:
        """The runner has encoded the batch's parts."""
        for part in batch.parts:
            part.source.held.advance(part.stop, self._num_left(part.source, part.stop))

    def restart(self, batch: Batch) -> list[int]:
        """The step has failed. Its sources that are not complete begin anew. Returns their keys."""
        restarted = [part.source for part in batch.parts if not part.source.is_computed]
        for source in restarted:
            source.held.restart(len(source.ids))
        return [source.held.key for source in restarted]

    def _num_left(self, source: Source, num_units: int) -> int:
        length = len(source.ids)
        return self._passes.num_tokens(length, num_units, self._passes.num_units(length))


def _may_begin(source: Source, begun: Collection[Source]) -> bool:
    is_shortest = all(len(source.ids) < len(other.ids) for other in begun)
    return len(begun) < (MOST_BEGUN if is_shortest else MOST_BEGUN - 1)


def _begun(batch: Batch, running: Iterable[SequenceGroup]) -> Collection[Source]:
    """With those that begin in the step."""
    begun = [group.source for group in running if group.source is not None and group.source.held.is_begun]
    return distinct([*begun, *(part.source for part in batch.parts if not part.is_last)])
