"""A new adapter in a step of rows with and without it: whether the runner can compute it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from server.engine.batch_inputs import Row
from server.engine.context import Context
from server.engine.model_runner import ModelRunner
from server.modules.adapted import NotShared
from server.modules.unsupported import FORWARD_FAILURES
from server.native.adapted import Deltas
from server.out_of_memory import is_memory_error

TRIED_IDS = (1, 2, 3)
NUM_BLOCKS = 3
"""Of a whole trial; fewer try less."""


@torch.inference_mode()
def try_all_steps(runner: ModelRunner, deltas: Deltas) -> None:
    """While no request runs: with the adapter alone, mixed, and without logits. Raises `NotShared`."""
    blocks = range(min(NUM_BLOCKS, runner.num_blocks))
    rows = _rows(deltas, blocks)
    _try(runner, [rows[:1], rows, rows[2:]], blocks)


@torch.inference_mode()
def try_step(runner: ModelRunner, deltas: Deltas, blocks: Sequence[int]) -> None:
    """In blocks that nobody holds. Raises `NotShared`."""
    _try(runner, [_rows(deltas, blocks)], blocks)


def _rows(deltas: Deltas, blocks: Sequence[int]) -> list[Row]:
    """Of prompts, with logits and without."""
    adapted = Context(adapter=deltas)
    return [
        Row(key=-1, token_ids=TRIED_IDS, num_computed=0, block_table=blocks[:1], context=adapted),
        Row(key=-2, token_ids=TRIED_IDS, num_computed=0, block_table=blocks[1:2]),
        Row(key=-3, token_ids=TRIED_IDS, num_computed=0, block_table=blocks[2:3], context=adapted, num_logits=0),
    ][: len(blocks)]


def _try(runner: ModelRunner, steps: Sequence[Sequence[Row]], blocks: Sequence[int]) -> None:
    """Nothing is left in the cache."""
    try:
        for rows in steps:
            if rows and not runner.forward(rows).isfinite().all():
                raise NotShared("a step with it gives numbers that are not finite")
    except FORWARD_FAILURES as error:
        reason = "memory ran out" if is_memory_error(error) else f"{type(error).__name__}: {error}"
        raise NotShared(f"a step with it fails ({reason})") from error
    finally:
        for key in (-1, -2, -3):
            runner.release(key)
        runner.clear_blocks(blocks)
