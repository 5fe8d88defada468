"""A decoder's layers as one chain of kernels, where all that they do is kernels; what it computes is `runner.advance`.

Dimension key: T tokens, D width of the hidden states.
"""

from __future__ import annotations

from torch import Tensor

from server.engine.attention.backend import AttentionBackend
from server.modules.layout import Decoder, Layer
from server.modules.parts import Norm
from server.native.chain import NOWHERE, Chain
from server.native.linear import Linear
from server.native.packing import NativeWeight

HIDDEN, NORMED, QKV, ATTENDED, UP, ADDED = range(6)
"""Buffers of a step."""


class ChainedLayers:
    """Raises `Unchained` where a layer cannot be one of a chain."""

    def __init__(self, decoder: Decoder[Linear], backend: AttentionBackend) -> None:
        layers = decoder.layers
        if not backend.can_chain or not Chain.is_possible(backend.dtype, decoder.head.device):
            raise Unchained
        dtype = backend.dtype
        tables = (decoder.embedding.table_VD, decoder.embedding.position_table_PD)
        if any(table.dtype != dtype for table in tables if table is not None):
            raise Unchained
        self._backend = backend
        width = decoder.head.in_features
        widest = [max(getattr(layer, role).out_features for layer in layers) for role in ("qkv", "up")]
        attended = max(spec.num_heads * spec.value_dim for spec in backend.specs)
        self._chain = Chain(dtype, (width, width, widest[0], attended, widest[1], width))
        self._ends: list[int] = []
        for i, layer in enumerate(layers):
            self._add(layer, i)
            self._ends.append(len(self._chain))

    def advance(self, h_TD: Tensor, positions_T: Tensor, num_layers: int) -> Tensor:
        """The first ``num_layers`` layers; ``h_TD`` is overwritten."""
        if not num_layers:
            return h_TD
        count = self._ends[num_layers - 1]
        return self._chain.run(h_TD.contiguous(), positions_T, self._backend.step_address, count)

    def _add(self, layer: Layer[Linear], index: int) -> None:
        if layer.wide_norms is not None or layer.residual_multiplier != 1.0:
            raise Unchained
        read = HIDDEN if layer.attention_norm is None else self._norm(layer.attention_norm, HIDDEN, NORMED)
        self._chain.linear(self._native(layer.qkv), read, QKV)
        addresses = self._backend.packed_call(index, layer.qkv.out_features, layer.rotary, layer.head_norm)
        self._chain.attention(*addresses, QKV, ATTENDED)
        if not layer.is_parallel:
            self._join(layer.o, ATTENDED, layer.attention_post_norm)
            read = HIDDEN
        if layer.mlp_norm is not None:
            read = self._norm(layer.mlp_norm, HIDDEN, NORMED)
        self._chain.linear(self._native(layer.up), read, UP)
        if layer.is_parallel:
            self._join(layer.o, ATTENDED, None)
        self._join(layer.down, UP, None if layer.is_parallel else layer.mlp_post_norm)

    def _join(self, linear: Linear, source: int, post_norm: Norm | None) -> None:
        """The hidden states and what the product adds to them."""
        if post_norm is None:
            self._chain.linear(self._native(linear), source, HIDDEN, HIDDEN)
        else:
            self._chain.linear(self._native(linear), source, ADDED)
            self._norm(post_norm, ADDED, HIDDEN, HIDDEN)

    def _native(self, linear: Linear) -> NativeWeight:
        if linear.native is None or linear.dtype != self._backend.dtype:
            raise Unchained
        return linear.native

    def _norm(self, norm: Norm, source: int, to: int, residual: int = NOWHERE) -> int:
        if not norm.is_centred:
            self._chain.rms_norm(source, to, norm.weight_D, norm.eps, residual)
        elif residual == NOWHERE:
            self._chain.layer_norm(source, to, norm.weight_D, norm.bias_D, norm.eps)
        else:
            raise Unchained
        return to


class Unchained(Exception):
    """Layers do something that is no kernel."""


def chained(decoder: Decoder[Linear], backend: AttentionBackend) -> ChainedLayers | None:
    try:
        return ChainedLayers(decoder, backend)
    except Unchained:
        return None
