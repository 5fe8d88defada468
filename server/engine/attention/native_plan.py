"""A step's rows as the attention kernel reads them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from server.engine.attention.backend import SourceRow
from server.engine.batch_inputs import IntArray
from server.native.abi import Row, Step


class Plan:
    """A `Step` and what it names by address, which the kernels read until it is filled again."""

    def __init__(self) -> None:
        self._step = Step()
        self._arrays: tuple[IntArray, ...] = ()
        self._failed_B = np.zeros(0, dtype=np.uint8)
        self.address = ctypes.addressof(self._step)
        self.num_tokens = 0

    def fill(self, rows: Sequence[tuple[int, ...]], tables: Sequence[Sequence[int] | IntArray]) -> None:
        """``rows`` are counts, computed and visible tokens, each with its block table."""
        rows_BF = np.empty((len(rows), len(Row._fields_)), dtype=np.int64)
        start = first_block = 0
        for i, ((count, computed, visible), table) in enumerate(zip(rows, tables, strict=True)):
            rows_BF[i] = start, count, computed, first_block, visible
            start += count
            first_block += len(table)
        block_tables = np.concatenate(tables, dtype=np.int64)
        self._failed_B = np.zeros(len(rows), dtype=np.uint8)
        self._arrays = (rows_BF, block_tables)
        step = self._step
        step.rows, step.num_rows = rows_BF.ctypes.data, len(rows_BF)
        step.block_tables, step.failed = block_tables.ctypes.data, self._failed_B.ctypes.data
        self.num_tokens = start

    def failed(self) -> list[int]:
        rows: list[int] = np.flatnonzero(self._failed_B).tolist()
        return rows


def merged(rows: Sequence[SourceRow]) -> list[SourceRow]:
    """Neighbours that see one source become one row, whose queries are multiplied with each block together."""
    found: list[SourceRow] = []
    for row in rows:
        assert row.num_source > 0, "a source has tokens"
        if found and found[-1].num_source == row.num_source and _is_same(found[-1].block_table, row.block_table):
            found[-1] = found[-1]._replace(num_tokens=found[-1].num_tokens + row.num_tokens)
        else:
            found.append(row)
    return found


def _is_same(one: Sequence[int] | IntArray, other: Sequence[int] | IntArray) -> bool:
    return one is other or np.array_equal(one, other)
