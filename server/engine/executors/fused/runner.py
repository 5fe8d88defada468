"""Runs a packed decoder over a paged cache; works on every device that torch does.

Dimension key
    T  new tokens in the step
    R  tokens whose logits are wanted
    D  width of the hidden states
    V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from server.engine.attention.backend import AttentionBackend
from server.engine.batch_inputs import BatchInputs
from server.engine.executors.paged import PagedRunner
from server.modules.adapted import number
from server.modules.chained import ChainedLayers, chained
from server.modules.layout import Attention, Decoder
from server.modules.operations import Attend, Operation, operations, run
from server.modules.products import held_bytes
from server.modules.summed import summed
from server.native.chain import Chain
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
        number(decoder.products())
        self._layers = [operations(layer, index) for index, layer in enumerate(decoder.layers)]
        self._chained = _chain(decoder, self._layers, backend)
        if decoder.head.device.type == "cuda":
            self._layers = summed(self._layers)
        self._has_sources = any(layer.source_kv is not None for layer in decoder.layers)
        self.weight_bytes = held_bytes(decoder)
        self.is_row_invariant = backend.is_row_invariant and all(
            linear.is_row_invariant for linear in decoder.products()
        )

    def compute(self, inputs: BatchInputs) -> Tensor:
        last = len(self._layers) - 1
        positions_T = inputs.rotary_ids_T
        h_TD = self._decoder.embedding(inputs.token_ids_T, inputs.position_ids_T, inputs.given)
        # What a layer reads where the one before it has normed its own sum.
        read_TD = h_TD
        # After the last attention nobody reads the rows without logits.
        is_cut = len(inputs.wanted_R) < len(positions_T)
        is_cut_early = is_cut and not self._has_sources
        num_whole = last + (not is_cut_early)
        if self._chained is not None:
            h_TD = self._chained.advance(h_TD, positions_T, num_whole)
        else:
            attend = attending(self.backend, positions_T)
            for layer in self._layers[:num_whole]:
                h_TD, read_TD = run(layer, h_TD, attend, read_TX=read_TD)
        if is_cut_early:
            attend = attending(self.backend, positions_T, inputs.wanted_R)
            h_TD, _ = run(self._layers[last], h_TD, attend, read_TX=read_TD, wanted_R=inputs.wanted_R)
        elif is_cut:
            h_TD = h_TD[inputs.wanted_R]
        return logits(self._decoder, h_TD) if len(h_TD) else h_TD.new_zeros(0, self.vocab_size, dtype=torch.float32)


def attending(backend: AttentionBackend, positions_T: Tensor, wanted_R: Tensor | None = None) -> Attend:
    """Answers a step's attention; of ``wanted_R`` alone, where they are given."""

    def attend(layer: int, attention: Attention, qkv_TX: Tensor) -> Tensor:
        if attention.is_cross:
            return backend.attend_source(layer, qkv_TX)
        attended_TX = backend.attend_packed(
            layer, qkv_TX, positions_T, rotary=attention.rotary, head_norm=attention.head_norm
        )
        return attended_TX if wanted_R is None else attended_TX[wanted_R]

    return attend


def _chain(
    decoder: Decoder[Linear], layers: Sequence[Sequence[Operation]], backend: AttentionBackend
) -> ChainedLayers | None:
    """None where the decoder's layers, its embedding or its attention cannot be of a chain."""
    tables = (decoder.embedding.table_VD, decoder.embedding.position_table_PD)
    if not backend.can_chain or not Chain.is_possible(backend.dtype, decoder.head.device):
        return None
    if any(table.dtype != backend.dtype for table in tables if table is not None):
        return None
    return chained(layers, backend)


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
