"""A step as paged kernels see it: who attends, and to which blocks. int32, as every such kernel takes it.

Dimension key
    T   new tokens in the step
    B   sequences of the step
    B1  one more
    W   width of the block tables
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from server.engine.batch_inputs import BatchInputs

Int32Array = npt.NDArray[np.int32]
Array = TypeVar("Array", Int32Array, Tensor)


class Parts(NamedTuple, Generic[Array]):
    """Views of a flat array; the tables first, where they are aligned."""

    tables_BW: Array
    """What lies behind a sequence's last block is never looked at."""
    starts_B1: Array
    """Where each sequence's new tokens start in T, and T."""
    length_starts_B1: Array
    """The same of all its tokens."""
    lengths_B: Array
    """Tokens of each sequence, with the new ones."""
    order_B: Array
    """The sequences, those with several new tokens first."""
    rows_T: Array
    """The sequence of each new token."""


def parts_of(flat: Array, num_sequences: int, width: int) -> Parts[Array]:
    tables = num_sequences * width
    starts = tables + num_sequences + 1
    length_starts = starts + num_sequences + 1
    lengths = length_starts + num_sequences
    order = lengths + num_sequences
    return Parts(
        flat[:tables].reshape(num_sequences, width),
        flat[tables:starts],
        flat[starts:length_starts],
        flat[length_starts:lengths],
        flat[lengths:order],
        flat[order:],
    )


@dataclass(frozen=True, kw_only=True)
class HostTables:
    """The tables on the host: one flat array, so that one copy takes them to the device."""

    flat: Int32Array
    num_sequences: int
    num_tokens: int
    width: int
    num_chunks: int
    """Sequences with several new tokens."""
    most_new: int
    """Most new tokens of a sequence."""
    most_tokens: int
    """Most tokens of a sequence, with the new ones."""

    @cached_property
    def parts(self) -> Parts[Int32Array]:
        return parts_of(self.flat, self.num_sequences, self.width)


def host_tables(inputs: BatchInputs, block_size: int, width: int = 0) -> HostTables:
    """``width`` 0 is that of the longest sequence."""
    rows = inputs.rows
    num_new = np.array([len(row.token_ids) for row in rows], dtype=np.int32)
    lengths = num_new + np.array([row.num_computed for row in rows], dtype=np.int32)
    widths = -(-lengths // block_size)
    width = width or int(widths.max())
    num_tokens = int(num_new.sum())
    host = HostTables(
        flat=np.zeros(len(rows) * (width + 4) + 2 + num_tokens, dtype=np.int32),
        num_sequences=len(rows),
        num_tokens=num_tokens,
        width=width,
        num_chunks=int((num_new > 1).sum()),
        most_new=int(num_new.max()),
        most_tokens=int(lengths.max()),
    )
    parts = host.parts
    for table, row, used in zip(parts.tables_BW, rows, widths.tolist(), strict=True):
        table[:used] = row.block_table[:used]
    np.cumsum(num_new, out=parts.starts_B1[1:])
    np.cumsum(lengths, out=parts.length_starts_B1[1:])
    parts.lengths_B[:] = lengths
    parts.order_B[:] = np.argsort(num_new == 1, kind="stable")
    parts.rows_T[:] = np.repeat(np.arange(len(rows), dtype=np.int32), num_new)
    return host
