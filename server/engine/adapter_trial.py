"""A new adapter in a step of rows with and without it: whether the runner can compute it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from server.engine.batch_inputs import Row
from server.engine.context import Context
from server.engine.model_runner import ModelRunner
from server.engine.preamble import FittedAdapter, Preamble
from server.modules.adapted import NotShared
from server.modules.unsupported import FORWARD_FAILURES
from server.out_of_memory import is_memory_error

TRIED_IDS = (1, 2, 3)


def num_blocks(adapter: FittedAdapter, block_size: int) -> int:
    """Blocks of a whole trial. With fewer, less is tried."""
    return 1 + 2 * _blocks_for(_context(adapter), block_size)


@torch.inference_mode()
def try_all_steps(runner: ModelRunner, adapter: FittedAdapter) -> None:
    """While no request runs: with the adapter alone, mixed, and without logits. Raises `NotShared`."""
    blocks = range(min(num_blocks(adapter, runner.block_size), runner.num_blocks))
    rows = _rows(adapter, blocks, runner.block_size)
    _try(runner, [rows[:1], rows, rows[2:]], blocks)


@torch.inference_mode()
def try_step(runner: ModelRunner, adapter: FittedAdapter, blocks: Sequence[int]) -> None:
    """In blocks that nobody holds. Raises `NotShared`."""
    _try(runner, [_rows(adapter, blocks, runner.block_size)], blocks)


def _rows(adapter: FittedAdapter, blocks: Sequence[int], block_size: int) -> list[Row]:
    """Of prompts, with logits and without."""
    context = _context(adapter)
    ids = TRIED_IDS if context.preamble is None else (*context.preamble.ids.tolist(), *TRIED_IDS)
    size = _blocks_for(context, block_size)
    rows = [
        Row(key=-1, token_ids=ids, num_computed=0, block_table=blocks[:size], context=context),
        Row(key=-2, token_ids=TRIED_IDS, num_computed=0, block_table=blocks[size : size + 1]),
        Row(key=-3, token_ids=ids, num_computed=0, block_table=blocks[size + 1 :], context=context, num_logits=0),
    ]
    return [row for row in rows if len(row.block_table) * block_size >= len(row.token_ids)]


def _context(adapter: FittedAdapter) -> Context:
    return Context(preamble=adapter) if isinstance(adapter, Preamble) else Context(adapter=adapter)


def _blocks_for(context: Context, block_size: int) -> int:
    return -(-(context.num_virtual + len(TRIED_IDS)) // block_size)


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
