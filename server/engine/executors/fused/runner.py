"""Runs a packed decoder over a paged cache; works on every device that torch does.

Dimension key
    T  new tokens in the step
    R  tokens whose logits are wanted
    D  width of the hidden states
    V  vocabulary size
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from server.engine.attention.backend import AttentionBackend
from server.engine.batch_inputs import BatchInputs
from server.engine.executors.fused.chained import chained
from server.engine.executors.paged import PagedRunner
from server.modules.attention import LayerSpec, Rotary
from server.modules.layout import Decoder, Layer
from server.modules.parts import Norm
from server.native.linear import Linear


class FusedRunner(PagedRunner):
    """Every layer is its norms, its products and one call of attention."""

    name = "fused"
    has_rotary_tables = True

    def __init__(
        self, decoder: Decoder[Linear], backend: AttentionBackend, *, num_blocks: int, block_size: int, vocab_size: int
    ) -> None:
        super().__init__(
            backend,
            decoder.head.device,
            decoder.head.dtype,
            num_blocks=num_blocks,
            block_size=block_size,
            vocab_size=vocab_size,
        )
        self._decoder = decoder
        self._chained = chained(decoder, backend)
        self.weight_bytes = held_bytes(decoder)
        self.is_row_invariant = backend.is_row_invariant and all(
            linear.is_row_invariant for linear in products(decoder)
        )

    def compute(self, inputs: BatchInputs) -> Tensor:
        layers, last = self._decoder.layers, len(self._decoder.layers) - 1
        positions_T = inputs.rotary_ids_T
        h_TD = self._decoder.embedding(inputs.token_ids_T, inputs.position_ids_T)
        # After the last attention nobody reads the rows without logits.
        wants_all = len(inputs.wanted_R) == len(positions_T)
        num_whole = last + wants_all
        if self._chained is not None:
            h_TD = self._chained.advance(h_TD, positions_T, num_whole)
        else:
            for i, layer in enumerate(layers[:num_whole]):
                h_TD = advance(layer, i, h_TD, positions_T, self.backend)
        if not wants_all:
            h_TD = advance(layers[last], last, h_TD, positions_T, self.backend, inputs.wanted_R)
        return logits(self._decoder, h_TD) if len(h_TD) else h_TD.new_zeros(0, self.vocab_size, dtype=torch.float32)


def held_bytes(part: Any) -> int:
    """Of the weights in a decoder or in a part of it. What several parts share is counted once."""
    found = {id(weight): weight for weight in _weights(part)}
    return sum(w.weight_bytes if isinstance(w, Linear) else w.numel() * w.itemsize for w in found.values())


def _weights(part: Any) -> Iterator[Tensor | Linear]:
    if isinstance(part, Linear):
        yield part if part.plain_weight is None else part.plain_weight
    elif isinstance(part, Tensor):
        yield part
    elif isinstance(part, tuple):
        for each in part:
            yield from _weights(each)
    # Rotary positions are computed, not learned.
    elif dataclasses.is_dataclass(part) and not isinstance(part, Rotary):
        yield from _weights(tuple(getattr(part, field.name) for field in dataclasses.fields(part)))


def products(decoder: Decoder[Linear]) -> Iterator[Linear]:
    for layer in decoder.layers:
        yield from (layer.qkv, layer.o, layer.up, layer.down)
    yield decoder.head


def advance(
    layer: Layer[Linear],
    index: int,
    h_TD: Tensor,
    positions_T: Tensor,
    backend: AttentionBackend,
    wanted_R: Tensor | None = None,
) -> Tensor:
    """One layer. With ``wanted_R`` all tokens' keys and values are written and only those tokens go on."""
    x_TD = h_TD if layer.attention_norm is None else layer.attention_norm(h_TD)
    qkv_TX = layer.qkv(x_TD)
    if layer.wide_norms is not None:
        qkv_TX = _wide_norms(qkv_TX, *layer.wide_norms, backend.specs[index])
    attended = backend.attend_packed(index, qkv_TX, positions_T, rotary=layer.rotary, head_norm=layer.head_norm)
    if wanted_R is not None:
        if not len(wanted_R):
            return h_TD[:0]
        attended, h_TD, x_TD = attended[wanted_R], h_TD[wanted_R], x_TD[wanted_R]
    if layer.is_parallel:
        joined = _join(layer, layer.o, attended, h_TD, None)
        x_TD = x_TD if layer.mlp_norm is None else layer.mlp_norm(h_TD)
        return _join(layer, layer.down, layer.up(x_TD), joined, None)
    h_TD = _join(layer, layer.o, attended, h_TD, layer.attention_post_norm)
    x_TD = h_TD if layer.mlp_norm is None else layer.mlp_norm(h_TD)
    return _join(layer, layer.down, layer.up(x_TD), h_TD, layer.mlp_post_norm)


def logits(decoder: Decoder[Linear], h_RD: Tensor) -> Tensor:
    """Float32, ``[R, V]``."""
    if decoder.final_norm is not None:
        h_RD = decoder.final_norm(h_RD)
    logits_RV: Tensor = decoder.head(h_RD, out_float=True)
    if decoder.logits_divisor != 1.0:
        logits_RV = logits_RV / decoder.logits_divisor
    if decoder.logits_softcap is not None:
        logits_RV = torch.tanh(logits_RV / decoder.logits_softcap) * decoder.logits_softcap
    return logits_RV


def _join(layer: Layer[Linear], product: Linear, x: Tensor, residual: Tensor, post_norm: Norm | None) -> Tensor:
    """The residual and what the product adds to it."""
    if post_norm is not None:
        return post_norm(product(x), residual)
    if layer.residual_multiplier != 1.0:
        return torch.add(residual, product(x), alpha=layer.residual_multiplier)
    joined: Tensor = product(x, residual)
    return joined


def _wide_norms(qkv_TX: Tensor, query_norm: Norm, key_norm: Norm, spec: LayerSpec) -> Tensor:
    widths = [spec.num_heads * spec.key_dim, spec.num_kv_heads * spec.key_dim, spec.num_kv_heads * spec.value_dim]
    query, key, value = torch.split(qkv_TX, widths, dim=-1)
    return torch.cat((query_norm(query.contiguous()), key_norm(key.contiguous()), value), dim=-1)
