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

import torch
from torch import Tensor
from torch.nn import functional

from server.native import abi, formats
from server.native.kernels import address
from server.native.linear import Linear
from server.native.packing import NativeWeight

GROUP = 16
"""Rows of A that lie together."""

RANK_MULTIPLE = 2
"""Of the rank at an embedding: two values of bfloat16 are one word of the kernels."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What an adapter changes of one product, in float32 and in the order of the product's rows.

    A whole weight excludes all else but ``added_N``.
    """

    a_RK: Tensor | None = None
    b_NR: Tensor | None = None
    in_scale_K: Tensor | None = None
    scale_N: Tensor | None = None
    added_N: Tensor | None = None
    whole_NK: Tensor | None = None
    """In place of the product's own weight."""


class Delta:
    """A `Change`, packed for the product that it is for."""

    def __init__(self, product: Linear, change: Change) -> None:
        device = product.device
        self.in_scale_K, scale, added = (
            None if part is None else part.float().to(device).contiguous()
            for part in (change.in_scale_K, change.scale_N, change.added_N)
        )
        self._factors: tuple[Tensor, Tensor] | None = None
        if change.a_RK is not None and change.b_NR is not None:
            self._factors = change.a_RK.to(device, product.dtype), change.b_NR.to(device, product.dtype)
        self._scale, self._added = scale, added
        self._packed: list[Tensor] = []
        self._whole: Linear | None = None
        self._fixed: abi.Fixed | None = None
        self.struct = abi.Delta()
        if change.whole_NK is not None:
            self._bring(product, change.whole_NK.to(device, product.dtype))
        elif product.native is not None:
            self._pack(product.native)

    def _bring(self, product: Linear, weight_NK: Tensor) -> None:
        """A product of the adapter's own."""
        if product.native is None:
            self._whole = Linear(weight_NK)
            return
        bias_N = added_to(product.bias, self._added)
        self._added = None
        self._whole = product.like(weight_NK, bias_N)
        assert self._whole.native is not None
        self._fixed = abi.Fixed(*self._whole.native.fixed)
        self.struct = abi.Delta(whole=ctypes.addressof(self._fixed))

    def _pack(self, weight: NativeWeight) -> None:
        """What the kernels read takes the place of the tensors."""
        self._scale, self._added = (
            None if part is None else weight.padded(part) for part in (self._scale, self._added)
        )
        fields = {
            "in_scale": address(self.in_scale_K),
            "scale": address(self._scale),
            "added": address(self._added),
        }
        if self._factors is not None:
            a_RK, b_NR = self._factors
            a_groups = groups(a_RK)
            b, parts = rank_panels(weight.padded(functional.pad(b_NR, (0, len(a_groups) * GROUP - b_NR.shape[1]))))
            self._packed = [a_groups, b, parts]
            self._factors = None
            fields |= {"a": address(a_groups), "num_groups": len(a_groups), "b": address(b), "parts": address(parts)}
        self.struct = abi.Delta(**fields)

    @property
    def num_bytes(self) -> int:
        parts = (self.in_scale_K, self._scale, self._added, *self._packed, *(self._factors or ()))
        whole_bytes: int = 0 if self._whole is None else self._whole.weight_bytes
        own_bytes: int = sum(part.numel() * part.itemsize for part in parts if part is not None)
        return whole_bytes + own_bytes

    def apply(self, x_MK: Tensor, product_MN: Tensor) -> Tensor:
        """Float32, for a product of torch without a bias."""
        if self._whole is not None:
            product_MN = self._whole(x_MK, out_float=True)
        if self._scale is not None:
            product_MN = product_MN * self._scale
        if self._factors is not None:
            a_RK, b_NR = self._factors
            product_MN = product_MN + functional.linear(functional.linear(x_MK, a_RK), b_NR).float()
        return product_MN if self._added is None else product_MN + self._added


class TableDelta:
    """What an adapter changes of an embedding: ``table[id] + B A[id]``, with a table of its own or the model's."""

    def __init__(self, dtype: torch.dtype, *, factors: tuple[Tensor, Tensor] | None, table_VD: Tensor | None) -> None:
        """Factors are A ``[V, R]`` and B ``[D, R]``."""
        self._table_VD = None if table_VD is None else table_VD.to(dtype).contiguous()
        self._a_VR: Tensor | None = None
        if factors is not None:
            missing = -factors[0].shape[1] % RANK_MULTIPLE
            self._a_VR, b_DR = (functional.pad(factor, (0, missing)).to(dtype).contiguous() for factor in factors)
            self._b = Linear(b_DR)

    @property
    def num_bytes(self) -> int:
        of_b = 0 if self._a_VR is None else int(self._b.weight_bytes)
        return of_b + sum(part.numel() * part.itemsize for part in (self._table_VD, self._a_VR) if part is not None)

    def apply(self, ids_M: Tensor, h_MD: Tensor) -> Tensor:
        """``h_MD`` are the rows of the model's own table."""
        if self._table_VD is not None:
            h_MD = functional.embedding(ids_M, self._table_VD)
        if self._a_VR is None:
            return h_MD
        added_MD = self._b(functional.embedding(ids_M, self._a_VR), out_float=True)
        return (h_MD.float() + added_MD).to(h_MD.dtype)


def added_to(bias_N: Tensor | None, added_N: Tensor | None) -> Tensor | None:
    """Float32."""
    if bias_N is None or added_N is None:
        return added_N if bias_N is None else bias_N.float()
    return bias_N.float() + added_N


def groups(a_RK: Tensor) -> Tensor:
    """``[groups, words, 16]``: rows of zeros fill the last group. A word of 32 bits has one value or two."""
    padded_RK = functional.pad(a_RK, (0, 0, 0, -len(a_RK) % GROUP)).contiguous()
    words_RW = padded_RK.view(torch.int32)
    return words_RW.view(-1, GROUP, words_RW.shape[1]).transpose(1, 2).contiguous()


def rank_panels(b_PR: Tensor) -> tuple[Tensor, Tensor]:
    """B in panels of 48 rows, and for each panel where it begins, its first word along R and their number.

    A panel has only the words between its first and its last that are not zero: a product of several layers has zeros
    where a layer's rows meet the other layers' A.
    """
    panels = formats.panels(b_PR.contiguous().view(torch.int32))
    # By value: -0.0 is zero too.
    is_used = (b_PR.reshape(-1, abi.PANEL, panels.shape[1], 4 // b_PR.itemsize) != 0).any(dim=3).any(dim=1)
    word = torch.arange(is_used.shape[1])
    first = torch.where(is_used, word, len(word)).amin(dim=1)
    stop = torch.where(is_used, word + 1, first[:, None]).amax(dim=1)
    count = stop - first
    parts = torch.stack(((count.cumsum(0) - count) * abi.PANEL, first, count), dim=1)
    return panels[(word >= first[:, None]) & (word < stop[:, None])], parts.contiguous()
