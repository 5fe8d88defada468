"""What an adapter changes of a packed product.

A row of the product becomes ``scale * (in_scale * x) W^T + B (A x) + added + bias``; an absent part changes nothing. In
our kernels a row's result depends on that row and its adapter alone.

Dimension key
    M  rows of the input
    K  input width
    N  rows of the weight
    P  rows of the weight as our kernels hold it: with padding, and a gate's panels between its partner's
    R  rank
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from server.native import abi
from server.native.kernels import address
from server.native.linear import Linear

RANK_MULTIPLE = 2
"""Of a rank: two values of bfloat16 are one word of the kernels."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What an adapter changes of one product, in float32 and in the order of the product's rows."""

    a_RK: Tensor | None = None
    b_NR: Tensor | None = None
    in_scale_K: Tensor | None = None
    scale_N: Tensor | None = None
    added_N: Tensor | None = None


class Delta:
    """A `Change`, packed for the product that it is for."""

    def __init__(self, product: Linear, change: Change) -> None:
        self.in_scale_K = _on(product, change.in_scale_K)
        self.scale = self._in_rows(product, change.scale_N)
        added = self._in_rows(product, change.added_N)
        self._a: Linear | None = None
        self._b: Linear | None = None
        if change.a_RK is not None and change.b_NR is not None:
            missing = -change.a_RK.shape[0] % RANK_MULTIPLE
            b = self._in_rows(product, functional.pad(change.b_NR, (0, missing)))
            assert b is not None
            a_RK = functional.pad(change.a_RK, (0, 0, 0, missing)).to(product.device)
            self._a, self._b = Linear(a_RK.to(product.dtype)), Linear(b.to(product.dtype), added)
        self._constant = added if self._b is None else None
        self._fixed = [None if part is None else _fixed(part) for part in (self._a, self._b)]
        parts = (self.in_scale_K, self.scale, self._constant)
        self.struct = abi.Delta(*(_place(fixed) for fixed in self._fixed), *map(address, parts))
        self.num_bytes = sum(part.weight_bytes for part in (self._a, self._b) if part is not None) + sum(
            part.numel() * part.itemsize for part in parts if part is not None
        )

    def _in_rows(self, product: Linear, rows: Tensor | None) -> Tensor | None:
        """``[N, ...]`` to ``[P, ...]``, where our kernels have the product."""
        if rows is None:
            return None
        rows = rows.float().to(product.device)
        return rows if product.native is None else product.native.padded(rows)

    def apply(self, x_MK: Tensor, product_MN: Tensor) -> Tensor:
        """Float32, for a product of torch without a bias."""
        if self.scale is not None:
            product_MN = product_MN * self.scale
        if self._a is not None and self._b is not None:
            return product_MN + self._b(self._a(x_MK), out_float=True)
        return product_MN if self._constant is None else product_MN + self._constant


def _on(product: Linear, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float().to(product.device).contiguous()


def _fixed(part: Linear) -> abi.Fixed | None:
    return None if part.native is None else abi.Fixed(*part.native.fixed)


def _place(fixed: abi.Fixed | None) -> int:
    return 0 if fixed is None else ctypes.addressof(fixed)
