"""Layers as one chain of kernels, where all of their operations are kernels.

Dimension key: T tokens, D width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from server.modules.attention import HeadNorm, Rotary
from server.modules.layout import Packed
from server.modules.operations import Attending, Multiply, Normalise, Operation, widths
from server.native.adapted import runs_of
from server.native.chain import NOWHERE, Chain
from server.native.packing import NativeWeight


class ChainedAttention(Protocol):
    """Attention that is a kernel of a chain."""

    dtype: torch.dtype
    step_address: int
    cross_address: int

    def packed_call(
        self, layer: int, width: int, rotary: Rotary | None, head_norm: HeadNorm | None
    ) -> tuple[int, int]: ...

    def cross_call(self, layer: int) -> tuple[int, int]: ...


class ChainedLayers:
    """Raises `Unchained` where a layer cannot be one of a chain."""

    def __init__(self, layers: Sequence[Sequence[Operation]], attention: ChainedAttention) -> None:
        self._attention = attention
        self._chain = Chain(attention.dtype, widths(operation for layer in layers for operation in layer))
        self._has_sources = False
        self._ends: list[int] = []
        for layer in layers:
            for operation in layer:
                self._add(operation)
            self._ends.append(len(self._chain))

    def advance(self, h_TD: Tensor, positions_T: Tensor, num_layers: int) -> Tensor:
        """The first ``num_layers`` layers; ``h_TD`` is overwritten."""
        if not num_layers:
            return h_TD
        count = self._ends[num_layers - 1]
        attention = self._attention
        cross_address = attention.cross_address if self._has_sources else 0
        return self._chain.run(
            h_TD.contiguous(),
            positions_T,
            attention.step_address,
            count,
            cross_address=cross_address,
            runs=runs_of(len(h_TD)),
        )

    def _add(self, operation: Operation) -> None:
        match operation:
            case Attending(attention=attention) if attention.is_cross:
                self._has_sources = True
                self._chain.cross_attention(
                    *self._attention.cross_call(operation.layer), operation.source, operation.to
                )
            case Attending(attention=attention) if attention.wide_norms is None:
                width = sum(attention.spec.projected_widths)
                call = self._attention.packed_call(operation.layer, width, attention.rotary, attention.head_norm)
                self._chain.attention(*call, operation.source, operation.to)
            case _:
                add_link(self._chain, operation, self._attention.dtype)


def add_link(chain: Chain, operation: Operation, dtype: torch.dtype) -> None:
    """Of an operation on single tokens. Raises `Unchained` if no kernel computes it."""
    match operation:
        case Normalise():
            _add_norm(chain, operation)
        case Multiply(multiplier=1.0, out_float=False):
            weight, number = _native(operation.product, dtype), operation.product.number or 0
            chain.linear(weight, operation.source, operation.to, _place(operation.residual), number=number)
        case _:
            raise Unchained


def _native(product: Packed, dtype: torch.dtype) -> NativeWeight:
    if product.native is None or product.dtype != dtype:
        raise Unchained
    return product.native


def _add_norm(chain: Chain, operation: Normalise) -> None:
    norm, places = operation.norm, (operation.source, operation.to)
    if not norm.is_centred:
        chain.rms_norm(*places, norm.weight_D, norm.eps, _place(operation.residual))
    elif operation.residual is None:
        chain.layer_norm(*places, norm.weight_D, norm.bias_D, norm.eps)
    else:
        raise Unchained


def _place(place: int | None) -> int:
    return NOWHERE if place is None else place


class Unchained(Exception):
    """Layers do something that is no kernel."""


def chained(layers: Sequence[Sequence[Operation]], attention: ChainedAttention) -> ChainedLayers | None:
    """None where the layers cannot be a chain."""
    try:
        return ChainedLayers(layers, attention)
    except Unchained:
        return None
