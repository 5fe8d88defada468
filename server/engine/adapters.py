"""Adapters for a runner: packed for its products, and tried in a step of rows with and without them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from server.engine.batch_inputs import Row
from server.engine.context import Context
from server.engine.model_runner import ModelRunner
from server.modules.adapted import LayerChange, NotShared, packed_changes
from server.modules.unsupported import FORWARD_FAILURES
from server.native.adapted import Deltas
from server.out_of_memory import raise_if_memory

TRIED_IDS = (1, 2, 3)


@torch.inference_mode()
def fit(runner: ModelRunner, changes: Mapping[str, LayerChange]) -> Deltas:
    """What requests of the adapter are computed with. Raises `NotShared` where the runner cannot do it."""
    if not runner.parts:
        raise NotShared("models of this kind do not share their workers")
    deltas = packed_changes(runner.parts, changes)
    try:
        _try(runner, deltas)
    except FORWARD_FAILURES as error:
        raise_if_memory(error)
        raise NotShared(f"a step with it fails ({type(error).__name__}: {error})") from error
    return deltas


def _try(runner: ModelRunner, deltas: Deltas) -> None:
    """Parts of prompts and single tokens, with logits and without. Nothing is left in the cache."""
    blocks = range(min(3, runner.num_blocks))
    adapted = Context(adapter=deltas)
    rows = [
        Row(key=-1, token_ids=TRIED_IDS, num_computed=0, block_table=blocks[:1], context=adapted),
        Row(key=-2, token_ids=TRIED_IDS, num_computed=0, block_table=blocks[1:2]),
        Row(key=-3, token_ids=TRIED_IDS, num_computed=0, block_table=blocks[2:3], context=adapted, num_logits=0),
    ][: len(blocks)]
    try:
        for step in (rows[:1], rows, rows[2:]):
            if step and not runner.forward(step).isfinite().all():
                raise NotShared("a step with it gives numbers that are not finite")
    finally:
        for row in rows:
            runner.release(row.key)
        runner.clear_blocks(blocks)
