"""The encoder of an encoder-decoder: texts end to end, without padding, and what the decoder's layers keep of them.

Dimension key
    S  tokens of all texts
    D  width of the hidden states
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from server.engine.attention.backend import AttentionBackend, SourceRow
from server.engine.batch_inputs import IntArray
from server.engine.encoding import EncoderPasses
from server.modules.layout import EncoderDecoder
from server.modules.operations import Attending, Multiply, Operation, operations
from server.modules.text_passes import TextPasses, TextStates
from server.modules.texts import Queries, Texts
from server.native.linear import Linear


class Reading:
    """Texts that the encoder reads together, and how far it has come."""

    def __init__(self, states: TextStates, block_tables: Sequence[Sequence[int] | IntArray]) -> None:
        self.states = states
        self.block_tables = block_tables
        self.num_units = 0
        """As `EncoderPasses` counts, of all texts end to end."""
        self.failed: set[int] = set()
        """Texts, by index, with keys or values that were not finite."""


class FusedEncoder:
    """A text's results depend on that text alone where the products' and the attention's do."""

    def __init__(self, layout: EncoderDecoder[Linear], backend: AttentionBackend) -> None:
        encoder = layout.encoder
        self._embedding, self._final_norm = encoder.embedding, encoder.final_norm
        self._device = layout.decoder.head.device
        layers = [operations(layer, index) for index, layer in enumerate(encoder.layers)]
        self._passes = TextPasses(layers, backend.dtype, self._device)
        self._source_kvs = [layer.source_kv for layer in layout.decoder.layers]
        self._backend = backend
        self.costs = self._costs()

    def begin(self, texts_ids: Sequence[Sequence[int]], block_tables: Sequence[Sequence[int] | IntArray]) -> Reading:
        """Read texts whose keys and values for the decoder are written into their blocks."""
        texts = Texts([len(ids) for ids in texts_ids], self._device)
        ids_S = torch.tensor([id_ for ids in texts_ids for id_ in ids], device=self._device)
        hidden_SD = self._embedding(ids_S, torch.from_numpy(texts.positions).to(self._device))
        return Reading(self._passes.begin(texts, hidden_SD), block_tables)

    def advance(self, reading: Reading, stop: int) -> None:
        """Go on until ``stop`` units are computed."""
        length = len(reading.states.hidden_SD)
        while reading.num_units < stop:
            first, start = divmod(reading.num_units, length)
            num_tokens, end = min(length - start, stop - reading.num_units), first + 1
            if num_tokens == length:
                end = stop // length
            queries = Queries(reading.states.texts, start, start + num_tokens)
            self._passes.run(reading.states, first, end, queries)
            if end == len(self._passes):
                self._write(reading, queries)
            reading.num_units += (end - first) * num_tokens

    def _write(self, reading: Reading, tokens: Queries) -> None:
        """Write what each layer of the decoder attends to, for some tokens."""
        states_SD = reading.states.hidden_SD[tokens.start : tokens.stop]
        if self._final_norm is not None:
            states_SD = self._final_norm(states_SD)
        first, backend = tokens.first_text, self._backend
        parts = zip(tokens.lengths, tokens.places.tolist(), reading.block_tables[first:], strict=False)
        backend.begin_sources([SourceRow(count, place + count, table, place) for count, place, table in parts])
        for layer, source_kv in enumerate(self._source_kvs):
            if source_kv is not None:
                backend.write_source(layer, source_kv(states_SD))
        reading.failed |= {first + i for i in backend.failed_sources()}

    def _costs(self) -> EncoderPasses:
        """The last pass includes what is written for the decoder."""
        tokens = [_products_of(each) for each in self._passes.passes]
        tokens[-1] += sum(kv.in_features * kv.out_features for kv in self._source_kvs if kv is not None)
        pairs = [sum(2.0 * step.width for step in each if isinstance(step, Attending)) for each in self._passes.passes]
        return EncoderPasses(tokens, pairs, kept_bytes=self._passes.kept_width * self._backend.dtype.itemsize)


def _products_of(steps: Sequence[Operation]) -> float:
    """Multiplications for each token."""
    products = [step.product for step in steps if isinstance(step, Multiply)]
    return float(sum(product.in_features * product.out_features for product in products))
