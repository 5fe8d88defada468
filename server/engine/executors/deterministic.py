"""A runner whose rows do not feel one another: each row's result is bitwise what it would be alone.

A matrix product may choose another order of summation for another number of rows, so what shares one depends on the
row alone: rows with one new token go through the module in groups of at most `GROUP_ROWS`, for which the packed
products give each row the same result (`check_linears` asks this machine), and a row with several new tokens goes
alone. The attention back end attends every row by itself, and the scheduler cuts prompts at fixed places.

Cost: one pass over the weights for each prompt chunk, and one for every `GROUP_ROWS` decode rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from server.engine.batch_inputs import Row
from server.engine.model_runner import ModelRunner

GROUP_ROWS = 32
"""Up to so many rows oneDNN's products take one order of summation on every machine that was looked at."""

PROBED_ROWS = (2, 3, 7, 16, 31)


class DeterministicRunner(ModelRunner):
    """Lays the rows of ``runner`` out in passes that depend on each row alone."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.name = runner.name
        self.attention = runner.attention
        self.device = runner.device
        self.dtype = runner.dtype
        self.vocab_size = runner.vocab_size
        self.block_size = runner.block_size
        self.num_blocks = runner.num_blocks
        self.kv_cache_bytes = runner.kv_cache_bytes
        self.can_reuse_blocks = runner.can_reuse_blocks

    def forward(self, rows: Sequence[Row]) -> Tensor:
        logits: list[Tensor | None] = [None] * len(rows)
        for members in _passes(rows):
            computed = self._runner.forward([rows[i] for i in members])
            parts = torch.split(computed, [rows[i].num_logits for i in members])
            for i, part in zip(members, parts, strict=True):
                logits[i] = part
        return torch.cat([part for part in logits if part is not None])

    def release(self, key: int) -> None:
        self._runner.release(key)

    def fork(self, parent_key: int, child_key: int) -> None:
        self._runner.fork(parent_key, child_key)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._runner.copy_blocks(pairs)

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        self._runner.clear_blocks(blocks)


def _passes(rows: Sequence[Row]) -> list[list[int]]:
    """Which rows share a forward pass."""
    single = [i for i, row in enumerate(rows) if len(row.token_ids) == 1]
    groups = [single[i : i + GROUP_ROWS] for i in range(0, len(single), GROUP_ROWS)]
    return groups + [[i] for i, row in enumerate(rows) if len(row.token_ids) > 1]


@torch.inference_mode()
def check_linears(module: nn.Module) -> str | None:
    """Which linear of ``module`` gives a row another result among other rows, as the end of a sentence; else None.

    Every distinct shape is tried once, with random input, at several numbers of rows up to `GROUP_ROWS`.
    """
    seen: set[tuple[type, int, int]] = set()
    generator = torch.Generator().manual_seed(0)
    for name, linear in module.named_modules():
        width = getattr(linear, "in_features", None)
        if width is None:
            continue
        shape = (type(linear), width, linear.out_features)
        if shape in seen:
            continue
        seen.add(shape)
        parameter = next(module.parameters())
        x = torch.randn(GROUP_ROWS, width, generator=generator).to(parameter.device, parameter.dtype)
        expected = linear(x)
        for num_rows in (1, *PROBED_ROWS):
            if not torch.equal(linear(x[:num_rows].contiguous()), expected[:num_rows]):
                return f"its linear {name} gives a row another result among {num_rows} rows than among {GROUP_ROWS}"
    return None
