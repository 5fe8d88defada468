"""Flat input tensors for one step; the only place where the step's host data becomes tensors.

Dimension key
    T  new tokens in the step, every sequence's laid end to end
    B  sequences in the step
    R  tokens of the step whose logits are wanted, row by row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.engine.context import NO_CONTEXT, Context
from server.engine.sources import Source

IntArray = npt.NDArray[np.int64]


class Row(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one sequence computes in a step: tokens ``num_computed`` to ``num_computed + len(token_ids) - 1``."""

    key: int
    """Names the sequence for as long as it holds blocks; a sequence that was preempted comes back with another key."""
    token_ids: Sequence[int] | IntArray
    num_computed: int
    """Tokens whose keys and values are in the cache already."""
    block_table: Sequence[int] | IntArray
    """Blocks that cover at least ``num_computed + len(token_ids)`` tokens. Valid for this step only."""
    num_logits: int = 1
    """Of how many of the new tokens, from the last one back, the logits are wanted; 0 where only the cache is."""
    deciding_length: int = 0
    """The length that decides the sequence's rotary factors; see `LengthRule`."""
    context: Context = NO_CONTEXT
    """What the sequence is computed with, beside its tokens."""
    position_offset: int = 0
    """Added to the tokens' positions, and to nothing else: far positions can be tried without computing up to them."""

    @property
    def source(self) -> Source:
        """What the encoder reads for the row. Only rows of encoder-decoders have one."""
        assert self.context.source is not None, "a row of an encoder-decoder reads a source"
        return self.context.source


@dataclass(frozen=True, kw_only=True)
class BatchInputs:
    """One step's rows as tensors on the model's device."""

    rows: Sequence[Row]
    token_ids_T: Tensor
    """int64"""
    position_ids_T: Tensor
    """int64"""
    rotary_ids_T: Tensor
    """int64: each token's row in tables of rotary factors that hold those of short sequences, then those of long ones.
    """
    slots_T: Tensor
    """int64: each new token's row in the cache, ``block * block_size + offset``."""
    wanted_R: Tensor
    """int64 indices into T: the tokens whose logits are computed, each row's last ``num_logits``; may be empty."""
    given: Sequence[tuple[slice, Tensor]] = ()
    """Embeddings of virtual tokens, and their places in T, where ``token_ids_T`` is 0 and means nothing."""


def slot_mapping(block_table: Sequence[int] | IntArray, start: int, stop: int, block_size: int) -> IntArray:
    """Cache slots of token positions ``start`` to ``stop - 1`` of one sequence.

    A slot is a token's row in the KV cache: ``block * block_size + offset``.

    >>> slot_mapping([7, 2], start=3, stop=6, block_size=4).tolist()
    [31, 8, 9]
    """
    first = start // block_size
    blocks = np.asarray(block_table[first : (stop - 1) // block_size + 1], dtype=np.int64)
    slots = (blocks[:, None] * block_size + np.arange(block_size)).reshape(-1)
    return slots[start - first * block_size : stop - first * block_size]


def on_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A host array as a tensor on ``device``; on the CPU they share memory."""
    return torch.from_numpy(array).to(device, non_blocking=True)


def build(rows: Sequence[Row], block_size: int, device: torch.device) -> BatchInputs:
    """Lay the rows end to end."""
    lengths = [len(row.token_ids) for row in rows]
    # One array for all four, so that one copy takes them to the device.
    packed = np.empty((4, sum(lengths)), dtype=np.int64)
    token_ids, positions, rotary_ids, slots = packed
    start = 0
    for row, length in zip(rows, lengths, strict=True):
        first = row.num_computed
        if length == 1:
            token_ids[start] = row.token_ids[0]
            positions[start] = first + row.position_offset
            slots[start] = row.block_table[first // block_size] * block_size + first % block_size
        else:
            stop = start + length
            token_ids[start:stop] = row.token_ids
            positions[start:stop] = np.arange(first, first + length) + row.position_offset
            slots[start:stop] = slot_mapping(row.block_table, first, first + length, block_size)
        start += length
    rotary_ids[:] = positions
    if {row.deciding_length for row in rows} != {0}:
        rotary_ids += np.repeat([max(0, row.deciding_length - 1) for row in rows], lengths)
    given = _given(rows, lengths)
    if given:
        token_ids[token_ids < 0] = 0
    token_ids_T, position_ids_T, rotary_ids_T, slots_T = on_device(packed, device).unbind()
    return BatchInputs(
        rows=rows,
        token_ids_T=token_ids_T,
        position_ids_T=position_ids_T,
        rotary_ids_T=rotary_ids_T,
        slots_T=slots_T,
        wanted_R=on_device(_wanted(rows, np.array(lengths, dtype=np.int64).cumsum()), device),
        given=given,
    )


def _given(rows: Sequence[Row], lengths: Sequence[int]) -> list[tuple[slice, Tensor]]:
    """What `BatchInputs.given` says."""
    found: list[tuple[slice, Tensor]] = []
    preambles = [row.context.preamble for row in rows]
    if not any(preambles):
        return found
    start = 0
    for row, preamble, length in zip(rows, preambles, lengths, strict=True):
        rows_ND = None if preamble is None else preamble.embeddings(row.num_computed, row.num_computed + length)
        if rows_ND is not None:
            found.append((slice(start, start + len(rows_ND)), rows_ND))
        start += length
    return found


def _wanted(rows: Sequence[Row], stops: IntArray) -> IntArray:
    """Indices of the last ``num_logits`` tokens of each row; ``stops`` are the rows' ends."""
    if {row.num_logits for row in rows} == {1}:
        return stops - 1
    return np.concatenate([np.arange(stop - row.num_logits, stop) for row, stop in zip(rows, stops, strict=True)])
