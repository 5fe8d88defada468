"""Flat input tensors for one step.

Dimension key
    T  new tokens in the step, every sequence's laid end to end
    B  sequences in the step
    S  sequences whose last new token samples
    V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one sequence computes in a step: tokens ``num_computed`` to ``num_computed + len(token_ids) - 1``."""

    key: int
    """Names the sequence for as long as it holds blocks; a sequence that was preempted comes back with another key."""
    token_ids: Sequence[int]
    num_computed: int
    """Tokens whose keys and values are in the cache already."""
    block_table: Sequence[int]
    """Blocks that cover at least ``num_computed + len(token_ids)`` tokens."""
    samples: bool
    """Whether the last of ``token_ids`` is the sequence's last known token, so that its logits choose the next one."""


@dataclass(frozen=True, kw_only=True)
class BatchInputs:
    """One step's rows as tensors on the model's device."""

    rows: Sequence[Row]
    token_ids_T: Tensor
    """int64"""
    position_ids_T: Tensor
    """int64"""
    slots_T: Tensor
    """int64: each new token's row in the cache, ``block * block_size + offset``."""
    sample_rows_S: Tensor
    """int64 indices into T."""


def slot_mapping(block_table: Sequence[int], start: int, stop: int, block_size: int) -> list[int]:
    """Cache slots of token positions ``start`` to ``stop - 1`` of one sequence.

    A slot is a token's row in the KV cache: ``block * block_size + offset``.

    >>> slot_mapping([7, 2], start=3, stop=6, block_size=4)
    [31, 8, 9]
    """
    return [block_table[i // block_size] * block_size + i % block_size for i in range(start, stop)]


def build(rows: Sequence[Row], block_size: int, device: torch.device) -> BatchInputs:
    """Lay the rows end to end."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    samples: list[int] = []
    for row in rows:
        stop = row.num_computed + len(row.token_ids)
        token_ids.extend(row.token_ids)
        positions.extend(range(row.num_computed, stop))
        slots.extend(slot_mapping(row.block_table, row.num_computed, stop, block_size))
        if row.samples:
            samples.append(len(token_ids) - 1)
    token_ids_T, position_ids_T, slots_T, sample_rows_S = (
        torch.tensor(values, dtype=torch.int64, device=device) for values in (token_ids, positions, slots, samples)
    )
    return BatchInputs(
        rows=rows,
        token_ids_T=token_ids_T,
        position_ids_T=position_ids_T,
        slots_T=slots_T,
        sample_rows_S=sample_rows_S,
    )
