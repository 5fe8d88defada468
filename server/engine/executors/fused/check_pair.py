"""Each layer of an encoder and of its decoder by itself against the module's own, as `check` does it for decoders.

Dimension key: S tokens of the observed source, R tokens with logits, D width of the hidden states, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from server.engine.attention.backend import AttentionBackend, SourceRow
from server.engine.executors.fused.check import LayerCheck, Observed, compare, watching
from server.modules import products
from server.modules.layout import Decoder, Embedding, Layer, Product
from server.modules.operations import operations, run
from server.modules.recognise_seq2seq import layers_of, stacks
from server.modules.text_attention import attending
from server.modules.texts import Texts
from server.modules.unsupported import Unsupported
from server.native.linear import Linear

NUM_LOGITS = 4
"""Tokens whose logits are compared."""


@dataclass(frozen=True, kw_only=True)
class ObservedPair:
    """A source and a target, and what the module makes of them."""

    encoder: Observed
    results_SD: Tensor
    """Of the encoder."""
    decoder: Observed
    logits_RV: Tensor
    """Of the target's last `NUM_LOGITS` tokens."""


@torch.inference_mode()
def observe_pair(module: PreTrainedModel, source_ids: Sequence[int], target_ids: Sequence[int]) -> ObservedPair:
    """Run the plain module and write down what its layers see."""
    encoder, decoder = stacks(module)
    source, target = (torch.tensor([list(ids)], device=module.device) for ids in (source_ids, target_ids))
    with watching(layers_of(encoder)) as encoder_states, watching(layers_of(decoder)) as decoder_states:
        output = module(
            input_ids=source, attention_mask=torch.ones_like(source), decoder_input_ids=target, use_cache=False
        )
    return ObservedPair(
        encoder=Observed(token_ids=source_ids, states_TD=encoder_states),
        results_SD=output.encoder_last_hidden_state[0],
        decoder=Observed(token_ids=target_ids, states_TD=decoder_states),
        logits_RV=output.logits[0, -NUM_LOGITS:],
    )


class PairCheck:
    """Every method raises `Unsupported` where a part differs from what was observed."""

    def __init__(
        self, observed: ObservedPair, backend: AttentionBackend, block_size: int, device: torch.device
    ) -> None:
        if not backend.can_cross:
            raise Unsupported(f"attention {backend.name} cannot attend to sources")
        self._observed = observed
        self._backend = backend
        self._decoder = LayerCheck(observed.decoder, backend, block_size, device)
        self._texts = Texts([len(observed.encoder.token_ids)], device)
        self._source_ids_S = torch.tensor(list(observed.encoder.token_ids), device=device)
        num_source, num_target = len(observed.encoder.token_ids), len(observed.decoder.token_ids)
        first = -(-num_target // block_size)
        table = range(first, first - (-num_source // block_size))
        backend.begin_sources([SourceRow(num_source, num_source, table)])
        backend.begin_cross([SourceRow(num_target, num_source, table)])

    @torch.inference_mode()
    def encoder_embedding(self, embedding: Embedding) -> None:
        ours_SD = embedding(self._source_ids_S, torch.arange(len(self._source_ids_S), device=self._source_ids_S.device))
        theirs_SD = self._observed.encoder.states_TD[0]
        compare(ours_SD, torch.zeros_like(ours_SD), theirs_SD, "its encoder's embedding gives")

    @torch.inference_mode()
    def encoder_layer(self, layer: Layer[Linear], index: int) -> None:
        before_SD, after_SD = self._observed.encoder.states_TD[index : index + 2]
        ours_SD, _ = run(operations(layer, index), before_SD, attending(self._texts))
        compare(ours_SD, before_SD, after_SD, f"its encoder's layer {index} computes")

    @torch.inference_mode()
    def end(self, decoder: Decoder[Product]) -> None:
        """What follows the layers, with the module's own weights."""
        h_RD = self._observed.decoder.states_TD[-1][-NUM_LOGITS:]
        if decoder.final_norm is not None:
            h_RD = decoder.final_norm(h_RD)
        weight_VD, bias_V = products.joined(decoder.head)
        ours_RV = functional.linear(h_RD.float(), weight_VD.float(), None if bias_V is None else bias_V.float())
        ours_RV = ours_RV / decoder.logits_divisor
        compare(ours_RV, torch.zeros_like(ours_RV), self._observed.logits_RV, "its head gives")

    def decoder_embedding(self, embedding: Embedding) -> None:
        self._decoder.embedding(embedding)

    @torch.inference_mode()
    def decoder_layer(self, layer: Layer[Linear], index: int) -> None:
        assert layer.source_kv is not None, "every layer of a decoder attends to the source"
        self._backend.write_source(index, layer.source_kv(self._observed.results_SD))
        self._decoder.layer(layer, index)
