"""From a module to a packed and checked decoder; the module's weights are released on the way.

Steps: observe the plain module, recognise its layout, then for each layer pack, check, release; compare the whole
decoder's logits; quantise. Where a check fails, everything is restored and `Unsupported` says why, so that another
executor may have the module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel

from server.engine import selfcheck
from server.engine.attention.backend import AttentionBackend
from server.engine.executors.fused import steady
from server.engine.executors.fused.check import LayerCheck, observe
from server.engine.executors.fused.runner import FusedRunner
from server.engine.lengths import LengthRule
from server.engine.selfcheck import Reference
from server.engine.short_windows import ShortWindows
from server.modules import products
from server.modules.adapted import decoder_parts
from server.modules.attention import LayerSpec
from server.modules.attention_calls import set_attention
from server.modules.layout import Decoder, Product
from server.modules.recognise import layers_of, recognise
from server.modules.unsupported import Unsupported
from server.native.linear import Linear
from server.number_types import Quantize

MakeBackend = Callable[[Sequence[LayerSpec], int], AttentionBackend]
"""An attention back end for layers and a number of blocks."""


class Prepared:
    """A packed decoder that has passed its checks, and the way back to its module."""

    def __init__(
        self,
        module: PreTrainedModel,
        layout: Decoder[Product],
        decoder: Decoder[Linear],
        weights: products.Weights,
        make_backend: MakeBackend,
        *,
        expected: Reference,
        block_size: int,
    ) -> None:
        self.decoder = decoder
        self._layout = layout
        self._weights = weights
        self._module = module
        self._make_backend = make_backend
        self._expected = expected
        self._block_size = block_size

    def runner(self, backend: AttentionBackend, num_blocks: int) -> FusedRunner:
        runner = FusedRunner(
            self.decoder,
            backend,
            num_blocks=num_blocks,
            block_size=self._block_size,
            vocab_size=self._expected.vocab_size,
        )
        runner.length_rule = self._expected.rule
        runner.parts = decoder_parts(self._module, self._layout, self.decoder)
        return runner

    def unsteady(self) -> str | None:
        """Why a row's result depends on other rows, as the end of a sentence; else None."""
        runner = self.small_runner(self._expected.num_blocks(self._block_size))
        return steady.unsteady(self.decoder) or steady.mixes_rows(runner, self._expected.sequences)

    def restore(self) -> None:
        """Give the module its weights back. Not after `quantise`."""
        self._weights.restore()

    def quantise(self, quantize: Quantize) -> None:
        """Layer by layer, so that only one is there twice. Raises ValueError for a weight that cannot be quantised."""
        self._weights.forget()
        layers, head = list(self.decoder.layers), self.decoder.head
        # Nobody else may hold a layer while it is replaced; and an embedding keeps its bits.
        self.decoder = dataclasses.replace(self.decoder, layers=(), embedding=self._layout.embedding)
        for i, layer in enumerate(self._layout.layers):
            layers[i] = products.quantised_layer(layers[i], layer, quantize)
        head = products.quantised(head, self._layout.head, quantize)
        self.decoder = dataclasses.replace(self.decoder, layers=tuple(layers), head=head)

    def small_runner(self, num_blocks: int) -> FusedRunner:
        """With a pool of its own, so that a check leaves nothing behind in the one that serves."""
        return self.runner(self._make_backend(self.decoder.specs, num_blocks), num_blocks)


def prepare(
    module: PreTrainedModel,
    specs: Sequence[LayerSpec],
    expected: Reference,
    make_backend: MakeBackend,
    *,
    num_positions: int,
    block_size: int,
) -> Prepared:
    """Raises `Unsupported` or what a strange module raises; its weights are then as they were."""
    expected.require_tried(specs, num_positions)
    layout = recognise(module, specs, _rotary_lengths(expected.rule, num_positions))
    set_attention(module, "eager")
    with expected.short.set_in(module):
        observed = observe(module, layers_of(module), expected.sequences[1])
    num_blocks = expected.num_blocks(block_size)
    weights = products.Weights(module)

    def backend(short: ShortWindows) -> AttentionBackend:
        return make_backend(short.specs(layout.specs), num_blocks)

    try:
        decoder = _pack(layout, weights, LayerCheck(observed, backend(expected.short), block_size, module.device))
        prepared = Prepared(module, layout, decoder, weights, make_backend, expected=expected, block_size=block_size)
        problem = selfcheck.difference(prepared.small_runner(num_blocks), expected)
        problem = problem or selfcheck.windowed_difference(
            lambda short: prepared.runner(backend(short), num_blocks), module, expected
        )
        if problem:
            raise Unsupported(problem)
    except BaseException:
        weights.restore()
        raise
    return prepared


def _rotary_lengths(rule: LengthRule | None, num_positions: int) -> list[int]:
    """Those of short sequences, then those of long ones: `BatchInputs.rotary_ids_T` counts on it."""
    if rule is None:
        return [num_positions]
    if rule.is_by_prompt:
        raise Unsupported("its rotary factors change with every token of a long sequence")
    return [rule.switch, num_positions]


def _pack(layout: Decoder[Product], weights: products.Weights, check: LayerCheck) -> Decoder[Linear]:
    check.embedding(layout.embedding)
    layers = []
    for i, layer in enumerate(layout.layers):
        packed = products.pack_layer(layer)
        check.layer(packed, i)
        weights.release_layer(layer, packed)
        layers.append(packed)
    head = products.pack(layout.head)
    embedding = layout.embedding
    is_tied = products.is_tied(layout.head, embedding.table_VD)
    if is_tied and head.has_rows:
        embedding = dataclasses.replace(embedding, table_VD=head)
        check.embedding(embedding)
        weights.release_shared(layout.head, head)
    else:
        if is_tied and head.plain_weight is not None:
            # The same object, by which `held_bytes` knows that there is one table.
            embedding = dataclasses.replace(embedding, table_VD=head.plain_weight)
        weights.release(layout.head, head)
    parts: dict[str, Any] = {"embedding": embedding, "layers": tuple(layers), "head": head}
    return dataclasses.replace(layout, **parts)  # type: ignore[return-value]
