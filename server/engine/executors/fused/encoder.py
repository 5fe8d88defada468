"""The encoder of an encoder-decoder: texts end to end, without padding, and what the decoder's layers keep of them.

Dimension key
    S  tokens of all texts
    D  width of the hidden states
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from server.engine.attention.backend import AttentionBackend, SourceRow
from server.engine.batch_inputs import IntArray
from server.modules.layout import EncoderDecoder
from server.modules.operations import operations, run
from server.modules.text_attention import attending
from server.modules.texts import Texts
from server.native.linear import Linear


class FusedEncoder:
    """A text's results depend on that text alone where the products' and the attention's do."""

    def __init__(self, layout: EncoderDecoder[Linear], backend: AttentionBackend) -> None:
        encoder = layout.encoder
        self._embedding, self._final_norm = encoder.embedding, encoder.final_norm
        self._layers = [operations(layer, index) for index, layer in enumerate(encoder.layers)]
        self._source_kvs = [layer.source_kv for layer in layout.decoder.layers]
        self._backend = backend
        self._device = layout.decoder.head.device

    def states(self, texts_ids: Sequence[Sequence[int]]) -> Tensor:
        """``[S, D]``, the texts' one after another."""
        texts = Texts([len(ids) for ids in texts_ids], self._device)
        ids_S = torch.tensor([id_ for ids in texts_ids for id_ in ids], device=self._device)
        h_SD = self._embedding(ids_S, torch.from_numpy(texts.positions).to(self._device))
        attend = attending(texts)
        for layer in self._layers:
            h_SD, _ = run(layer, h_SD, attend)
        return h_SD if self._final_norm is None else self._final_norm(h_SD)

    def write(self, texts_ids: Sequence[Sequence[int]], block_tables: Sequence[Sequence[int] | IntArray]) -> list[int]:
        """Encode texts and write what each layer of the decoder attends to into their blocks.

        Returns the texts, by index, whose keys or values were not finite.
        """
        states_SD = self.states(texts_ids)
        backend = self._backend
        pairs = zip(texts_ids, block_tables, strict=True)
        backend.begin_sources([SourceRow(len(ids), len(ids), table) for ids, table in pairs])
        for layer, source_kv in enumerate(self._source_kvs):
            if source_kv is not None:
                backend.write_source(layer, source_kv(states_SD))
        return backend.failed_sources()
