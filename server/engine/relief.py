"""What happens when memory runs out within a step: the same work in smaller steps, and in the end without one request.

A step that fails this way has chosen no token and published no block. The token budget is halved each time, and doubled
after a number of steps that succeed, up to the usual one.
"""

from __future__ import annotations

import gc
import logging

import torch

from server.engine.batch import Batch
from server.engine.model_runner import ModelRunner
from server.engine.scheduler import Scheduler
from server.engine.sequence_group import SequenceGroup
from server.errors import InsufficientMemory
from server.protocol import Failed

log = logging.getLogger("sluice.engine")

PATIENCE = 16
"""Steps before a wider one is tried, which may fail and lose what it computed; twice as many after each failure."""
MOST_PATIENCE = 4096


class Relief:
    """Lowers the scheduler's token budget for a while."""

    def __init__(self, scheduler: Scheduler, runner: ModelRunner) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._usual_tokens = scheduler.max_batch_tokens
        self._num_successes = 0
        """Steps since the last one that failed or since the budget was raised."""
        self._patience = PATIENCE
        self._smallest: tuple[str, int] | None = None
        """The request that was alone in the last step that failed, and its tokens of that step. None in wider steps.

        Kept over steps that succeed: a source begins anew, and its first parts may fit where its last never does.
        """

    def after_failure(self, batch: Batch, *, is_computed: bool) -> list[Failed]:
        """Make the next step smaller, and end a request that does not fit alone.

        ``is_computed`` says that the step's tokens count as computed already.
        """
        # The young generations: what a step leaves is not old.
        gc.collect(1)
        self._num_successes = 0
        self._patience = min(MOST_PATIENCE, 2 * self._patience)
        if self._runner.device.type == "cuda":
            torch.cuda.empty_cache()
        groups = batch.groups
        log.warning("out of memory in a step of %d tokens of %d requests", batch.num_tokens, len(groups))
        # What such a runner keeps of a row may hold half of the step; and only giving it back frees memory.
        keeps_states = not self._runner.can_reuse_blocks
        is_freed = keeps_states and self._scheduler.preempt_newest() > 0
        if is_computed or keeps_states:
            self._scheduler.restart(groups)
        self._scheduler.max_batch_tokens = max(1, min(self._scheduler.max_batch_tokens, batch.num_tokens) // 2)
        if len(groups) > 1 or is_freed:
            self._smallest = None
            return []
        before, self._smallest = self._smallest, (groups[0].request_id, batch.num_tokens)
        is_tried = before is not None and before[0] == groups[0].request_id and before[1] <= batch.num_tokens
        # Rows of which one choice is made cannot be computed one by one.
        smallest = len(batch.shares) if groups[0].is_joint else 1
        if is_tried or batch.num_tokens <= smallest:
            self._smallest = None
            return [self._end(groups[0])]
        return []

    def _end(self, group: SequenceGroup) -> Failed:
        # It was the cause, as far as can be known.
        self._patience = PATIENCE
        self._scheduler.max_batch_tokens = self._usual_tokens
        if blocks := self._scheduler.discard(group):
            self._runner.clear_blocks(blocks)
        message = "The server does not have enough memory for this request. Shorten it, or request fewer outputs."
        return Failed(group.request_id, InsufficientMemory.code, message)

    def after_success(self) -> None:
        self._num_successes += 1
        if self._num_successes < self._patience:
            return
        self._num_successes = 0
        if self._scheduler.max_batch_tokens == self._usual_tokens:
            self._patience = PATIENCE
        self.widen()

    def widen(self) -> None:
        """Also where a step had no work: some requests need several tokens in one step."""
        if self._scheduler.max_batch_tokens < self._usual_tokens:
            self._smallest = None
            self._scheduler.max_batch_tokens = min(self._usual_tokens, 2 * self._scheduler.max_batch_tokens)
