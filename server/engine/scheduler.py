"""Which sequences compute how many tokens in a step. Knows no tensors and no tokens' meaning.

There are no phases: every sequence has known tokens and wants those computed that are not. A step spends its token
budget first on sequences that lack one token, then on longer remainders in chunks, then on waiting sequences, each in
the order of arrival. A sequence gets the blocks of all its known tokens when it is admitted, so that only growth by a
chosen token can find the cache full; then the newest running sequence gives its blocks back and waits, with its
tokens kept, at the head of the queue. The oldest always runs on, and each fits alone, so there is no livelock.

A beam group will be admitted, preempted and finished as one entry of these queues.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from server.engine.block_manager import BlockManager
from server.engine.sequence import Sequence


class Share(NamedTuple):
    """A sequence's part of a step."""

    sequence: Sequence
    num_new_tokens: int

    @property
    def num_prompt_tokens(self) -> int:
        """Of the new tokens, those of the prompt. Asked before they are computed."""
        missing = self.sequence.num_prompt_tokens - self.sequence.num_computed_tokens
        return max(0, min(self.num_new_tokens, missing))


@dataclass(slots=True)
class Batch:
    """One step's decision."""

    shares: list[Share] = field(default_factory=list)
    started: list[Sequence] = field(default_factory=list)
    """Sequences admitted for the first time."""
    num_preemptions: int = 0


class Scheduler:
    """The only one who moves sequences between waiting, running and finished."""

    def __init__(
        self, blocks: BlockManager, *, max_batch_tokens: int, max_running: int, release: Callable[[int], None]
    ) -> None:
        self.blocks = blocks
        self.max_batch_tokens = max_batch_tokens
        self.max_running = max_running
        self._release = release
        self._waiting: OrderedDict[str, Sequence] = OrderedDict()
        self._running: OrderedDict[str, Sequence] = OrderedDict()
        self._next_key = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._running or request_id in self._waiting

    def fits_alone(self, sequence: Sequence) -> bool:
        """Whether the empty cache could hold the sequence's longest output; the last token is never computed."""
        return self.blocks.blocks_for(sequence.stopping.max_tokens - 1) <= self.blocks.num_blocks

    def add(self, sequence: Sequence) -> None:
        self._waiting[sequence.request_id] = sequence

    def abort(self, request_id: str) -> None:
        """Forget a sequence; an unknown id is no error."""
        if self._waiting.pop(request_id, None) is None and request_id in self._running:
            self.finish(self._running[request_id])

    def finish(self, sequence: Sequence) -> None:
        """A running sequence gives its blocks back and is forgotten."""
        self._leave(sequence)
        self.blocks.free(sequence)

    def discard(self, sequence: Sequence) -> list[int]:
        """Finish a sequence whose cache content is bad. Returns the blocks that nobody holds any more."""
        self._leave(sequence)
        return self.blocks.discard(sequence)

    def schedule(self) -> Batch:
        """Choose the next step's work and give it blocks."""
        batch = Batch()
        budget = self._schedule_growth(batch)
        for sequence in self._running.values():
            if budget > 0 and sequence.num_new_tokens > 1:
                budget -= self._share(batch, sequence, budget)
        if batch.num_preemptions == 0:
            self._admit(batch, budget)
        return batch

    def computed(self, batch: Batch) -> None:
        """The batch's tokens are in the cache."""
        for sequence, num_new_tokens in batch.shares:
            sequence.num_computed_tokens += num_new_tokens

    def check(self) -> None:
        """Raise if an invariant fails. For tests."""
        self.blocks.check(self._running.values())
        orders = [sequence.order for queue in (self._running, self._waiting) for sequence in queue.values()]
        if orders != sorted(orders):
            raise AssertionError("a later arrival stands before an earlier one")
        if any(sequence.num_blocks or sequence.key is not None for sequence in self._waiting.values()):
            raise AssertionError("a waiting sequence holds blocks")
        if any(sequence.key is None for sequence in self._running.values()):
            raise AssertionError("a running sequence has no key")

    def _schedule_growth(self, batch: Batch) -> int:
        """Sequences that lack one token. Returns the budget left."""
        budget = self.max_batch_tokens
        for sequence in list(self._running.values()):
            # A victim of this very loop is no longer running.
            if sequence.key is None or sequence.num_new_tokens != 1 or budget == 0:
                continue
            while not self.blocks.grow(sequence, sequence.num_tokens):
                victim = next(reversed(self._running.values()))
                self._preempt(victim)
                batch.num_preemptions += 1
                if victim is sequence:
                    break
            else:
                budget -= self._share(batch, sequence, budget)
        return budget

    def _admit(self, batch: Batch, budget: int) -> None:
        while budget > 0 and self._waiting and len(self._running) < self.max_running:
            sequence = next(iter(self._waiting.values()))
            # One spare block for each that runs, or the newcomer would soon be preempted for their growth.
            if not self.blocks.admit(sequence, num_spare=len(self._running)):
                return
            del self._waiting[sequence.request_id]
            self._running[sequence.request_id] = sequence
            sequence.key = self._next_key
            self._next_key += 1
            if sequence.num_cached_tokens is None:
                sequence.num_cached_tokens = min(sequence.num_computed_tokens, sequence.num_prompt_tokens)
                batch.started.append(sequence)
            budget -= self._share(batch, sequence, budget)

    def _share(self, batch: Batch, sequence: Sequence, budget: int) -> int:
        num_new_tokens = min(sequence.num_new_tokens, budget)
        batch.shares.append(Share(sequence, num_new_tokens))
        return num_new_tokens

    def _preempt(self, sequence: Sequence) -> None:
        self.finish(sequence)
        self._waiting[sequence.request_id] = sequence
        self._waiting.move_to_end(sequence.request_id, last=False)

    def _leave(self, sequence: Sequence) -> None:
        del self._running[sequence.request_id]
        if sequence.key is not None:
            self._release(sequence.key)
        sequence.key = None
