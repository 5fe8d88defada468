"""Which rows of a step have which adapter. A product asks when it is computed.

Dimension key: M rows of the input, K input width, N rows of the weight.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from server.native import abi

if TYPE_CHECKING:
    from server.native.deltas import Delta, TableDelta


class Deltas:
    """One adapter: what it changes, by number of the product."""

    def __init__(self, deltas: Mapping[int, Delta], num_products: int, table: TableDelta | None = None) -> None:
        """``table`` is what it changes of the input embedding."""
        self._deltas = deltas
        self.embedding = table
        places = [_place_of(deltas.get(number)) for number in range(num_products)]
        self.table = (ctypes.c_void_p * num_products)(*places)
        self.num_bytes = sum(delta.num_bytes for delta in deltas.values())
        if table is not None:
            self.num_bytes += table.num_bytes

    def get(self, number: int) -> Delta | None:
        return self._deltas.get(number)


def _place_of(delta: Delta | None) -> int | None:
    return None if delta is None else ctypes.addressof(delta.struct)


@dataclass(frozen=True)
class AdaptedRows:
    """Neighbouring rows of one adapter."""

    start: int
    count: int
    deltas: Deltas


class Runs:
    """The rows of a step that have an adapter, in order."""

    @classmethod
    def of(cls, counts: Sequence[tuple[Deltas | None, int]]) -> Runs:
        """Of adapters, each for a number of rows: neighbours with the same one are together."""
        found: list[AdaptedRows] = []
        start = 0
        for deltas, count in counts:
            last = found[-1] if found else None
            if deltas is None or not count:
                pass
            elif last is not None and last.deltas is deltas and last.start + last.count == start:
                found[-1] = AdaptedRows(last.start, last.count + count, deltas)
            else:
                found.append(AdaptedRows(start, count, deltas))
            start += count
        return cls(found)

    def __init__(self, runs: Sequence[AdaptedRows]) -> None:
        self.rows = runs
        self.array = (abi.Run * len(runs))(
            *(abi.Run(run.start, run.count, ctypes.addressof(run.deltas.table)) for run in runs)
        )

        self.place = (ctypes.addressof(self.array), len(runs))
        """Of the array that kernels read."""

    def change_inputs(self, x_MK: Tensor, number: int) -> Tensor:
        """``x_MK`` as the product takes it."""
        changed = x_MK
        for part, delta in self._changing(number):
            if delta.in_scale_K is not None:
                changed = changed.clone() if changed is x_MK else changed
                changed[part] = (x_MK[part] * delta.in_scale_K).to(x_MK.dtype)
        return changed

    def change_product(self, x_MK: Tensor, product_MN: Tensor, number: int) -> Tensor:
        """Float32, of a product by torch without a bias."""
        product_MN = product_MN.float()
        for part, delta in self._changing(number):
            product_MN[part] = delta.apply(x_MK[part], product_MN[part])
        return product_MN

    def _changing(self, number: int) -> Iterator[tuple[slice, Delta]]:
        for run in self.rows:
            if (delta := run.deltas.get(number)) is not None:
                yield slice(run.start, run.start + run.count), delta


_STEP: ContextVar[Mapping[int, Runs] | None] = ContextVar("adapted rows", default=None)


@contextmanager
def adapting(by_count: Mapping[int, Runs] | None) -> Iterator[None]:
    """Within, products have adapters: those with ``M`` rows the adapters of ``by_count[M]``."""
    token = _STEP.set(by_count)
    try:
        yield
    finally:
        _STEP.reset(token)


def embedded(ids_M: Tensor, h_MD: Tensor) -> Tensor:
    """Rows of an embedding's table, in which adapters change theirs."""
    runs = runs_of(len(ids_M))
    changed = h_MD
    for run in () if runs is None else runs.rows:
        if (table := run.deltas.embedding) is not None:
            changed = changed.clone() if changed is h_MD else changed
            part = slice(run.start, run.start + run.count)
            changed[part] = table.apply(ids_M[part], h_MD[part])
    return changed


def runs_of(num_rows: int) -> Runs | None:
    """The adapters of a product's rows; None where no row of the step has one.

    Raises RuntimeError where the step has no such number of rows.
    """
    by_count = _STEP.get()
    if by_count is None:
        return None
    runs = by_count.get(num_rows)
    if runs is None:
        raise RuntimeError(f"a product with an adapter has {num_rows} rows, and the step {sorted(by_count)}")
    return runs
