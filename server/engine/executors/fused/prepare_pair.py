"""From a module with an encoder and a decoder to packed and checked ones, as `prepare` does it for decoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel

from server.engine.attention.backend import AttentionBackend
from server.engine.executors.fused.check_pair import PairCheck, observe_pair
from server.modules import products
from server.modules.attention import LayerSpec
from server.modules.attention_calls import set_attention
from server.modules.layout import Decoder, Embedding, Encoder, EncoderDecoder, Layer, Product
from server.modules.recognise_seq2seq import candidates
from server.modules.unsupported import Unsupported
from server.native.linear import Linear
from server.number_types import Quantize

MakeBackend = Callable[[Sequence[LayerSpec], int], AttentionBackend]
"""An attention back end for layers and a number of blocks."""


class PreparedPair:
    """A packed encoder and decoder whose layers have passed their checks, and the way back to their module."""

    def __init__(
        self, layout: EncoderDecoder[Product], packed: EncoderDecoder[Linear], weights: products.Weights
    ) -> None:
        self.packed = packed
        self._layout = layout
        self._weights = weights

    def restore(self) -> None:
        """Give the module its weights back. Not after `quantise`."""
        self._weights.restore()

    def quantise(self, quantize: Quantize) -> None:
        """Layer by layer, so that only one is there twice. Raises ValueError for a weight that cannot be quantised."""
        self._weights.forget()
        encoder, decoder = self.packed.encoder, self.packed.decoder
        stacks = [list(encoder.layers), list(decoder.layers)]
        head = decoder.head
        # Nobody else may hold a layer while it is replaced; and embeddings keep their bits.
        encoder = dataclasses.replace(encoder, layers=(), embedding=self._layout.encoder.embedding)
        decoder = dataclasses.replace(decoder, layers=(), embedding=self._layout.decoder.embedding)
        self.packed = EncoderDecoder(encoder=encoder, decoder=decoder)
        for layers, layouts in zip(stacks, (self._layout.encoder.layers, self._layout.decoder.layers), strict=True):
            for i, layout in enumerate(layouts):
                layers[i] = products.quantised_layer(layers[i], layout, quantize)
        head = products.quantised(head, self._layout.decoder.head, quantize)
        self.packed = EncoderDecoder(
            encoder=dataclasses.replace(encoder, layers=tuple(stacks[0])),
            decoder=dataclasses.replace(decoder, layers=tuple(stacks[1]), head=head),
        )


def prepare_pair(
    module: PreTrainedModel,
    source_ids: Sequence[int],
    target_ids: Sequence[int],
    make_backend: MakeBackend,
    *,
    block_size: int,
) -> PreparedPair:
    """Layers are checked on this source and target; whole outputs are for the caller to compare.

    Raises `Unsupported` or what a strange module raises; its weights are then as they were.
    """
    set_attention(module, "eager")
    observed = observe_pair(module, source_ids, target_ids)
    num_blocks = sum(-(-len(ids) // block_size) for ids in (source_ids, target_ids))

    def check_of(layout: EncoderDecoder[Product]) -> PairCheck:
        backend = make_backend(layout.decoder.specs, num_blocks)
        return PairCheck(observed, backend, block_size, module.device)

    layout, check = _fitting(module, check_of)
    weights = products.Weights(module)
    try:
        packed = _pack(layout, weights, check)
    except BaseException:
        weights.restore()
        raise
    return PreparedPair(layout, packed, weights)


def _fitting(
    module: PreTrainedModel, check_of: Callable[[EncoderDecoder[Product]], PairCheck]
) -> tuple[EncoderDecoder[Product], PairCheck]:
    """The first candidate whose first layer and whose end compute what the module's do."""
    problem: Unsupported | None = None
    for layout in candidates(module):
        check = check_of(layout)
        try:
            check.encoder_layer(products.pack_layer(layout.encoder.layers[0]), 0)
            check.end(layout.decoder)
        except Unsupported as error:
            problem = problem or error
        else:
            return layout, check
    assert problem is not None
    raise problem


def _pack(layout: EncoderDecoder[Product], weights: products.Weights, check: PairCheck) -> EncoderDecoder[Linear]:
    check.encoder_embedding(layout.encoder.embedding)
    check.decoder_embedding(layout.decoder.embedding)

    def packed(layers: Sequence[Layer[Product]], checked: Callable[[Layer[Linear], int], None]) -> Any:
        found = []
        for i, layer in enumerate(layers):
            linears = products.pack_layer(layer)
            checked(linears, i)
            weights.release_layer(layer, linears)
            found.append(linears)
        return tuple(found)

    encoder_layers = packed(layout.encoder.layers, check.encoder_layer)
    decoder_layers = packed(layout.decoder.layers, check.decoder_layer)
    head, embeddings = _pack_ends(layout, weights)
    check.encoder_embedding(embeddings[0])
    check.decoder_embedding(embeddings[1])
    encoder: Encoder[Any] = layout.encoder
    decoder: Decoder[Any] = layout.decoder
    return EncoderDecoder(
        encoder=dataclasses.replace(encoder, embedding=embeddings[0], layers=encoder_layers),
        decoder=dataclasses.replace(decoder, embedding=embeddings[1], layers=decoder_layers, head=head),
    )


def _pack_ends(layout: EncoderDecoder[Product], weights: products.Weights) -> tuple[Linear, list[Embedding]]:
    """The head, and the embeddings of both, which read it where they share its weight and it can be read."""
    product = layout.decoder.head
    head = products.pack(product)
    embeddings = [layout.encoder.embedding, layout.decoder.embedding]
    tied = [products.is_tied(product, embedding.table_VD) for embedding in embeddings]
    table = head if head.has_rows else head.plain_weight
    if table is not None:
        embeddings = [
            dataclasses.replace(embedding, table_VD=table) if is_tied else embedding
            for embedding, is_tied in zip(embeddings, tied, strict=True)
        ]
    if any(tied) and head.has_rows:
        weights.release_shared(product, head)
    else:
        weights.release(product, head)
    return head, embeddings
