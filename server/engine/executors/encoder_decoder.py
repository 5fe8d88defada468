"""transformers' own encoder-decoders: each source is encoded once, each row decodes by itself, slow and right.

The keys and values of a source's cross-attention are computed with the first row that reads it and shared by all.

Dimension key: S tokens of a source, H hidden size, V vocabulary size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from server.engine.batch_inputs import Row
from server.engine.context import Context
from server.engine.encoding import SourcePart, whole
from server.engine.executors.compat import CompatRunner, tensor_bytes
from server.engine.sources import Source, held_source


@dataclass(frozen=True)
class _Encoded:
    """What is held of one source."""

    states: ModelOutput
    """Of the encoder's own class: its last hidden states ``[1, S, H]``, and nothing else."""
    cross: DynamicCache
    """Keys and values of every decoder layer's cross-attention, as far as a row has asked for them."""

    @property
    def num_bytes(self) -> int:
        hidden_1SH = self.states.last_hidden_state
        return int(hidden_1SH.numel() * hidden_1SH.itemsize + tensor_bytes(self.cross))


class EncoderDecoderRunner(CompatRunner):
    """Holds one cache per row for the row's own tokens, and one per source for what its readers share.

    A block counts the memory of ``block_size`` tokens of a row or of a source, whichever is more.
    """

    def __init__(self, module: PreTrainedModel, **options: Any) -> None:
        super().__init__(module, **options)
        self.parts = {}  # Adapters of both sides would need the numbers of a source's tokens too.
        self._encoded: dict[int, _Encoded] = {}
        self.source_vocab_size = num_embeddings(module.get_encoder())

    def source_bytes(self) -> int:
        """Bytes of all tensors that are held for sources now."""
        return sum(encoded.num_bytes for encoded in self._encoded.values())

    def forward(self, rows: Sequence[Row]) -> Tensor:
        fresh = {source.held.key: source for row in rows if not (source := row.source).is_computed}
        self.encode([whole(source) for source in fresh.values()])
        return super().forward(rows)

    def encode(self, parts: Sequence[SourcePart]) -> None:
        for part in parts:
            self._encoded[part.source.held.key] = _Encoded(self._encode_one(part.source), DynamicCache())

    def release_source(self, key: int) -> None:
        self._encoded.pop(key, None)

    @torch.inference_mode()
    def measure_block(self) -> int:
        """What a row of one block, or a source of one block, holds, whichever is more."""
        ids = [1] * self.block_size
        self.forward(
            [Row(key=0, token_ids=ids, num_computed=0, block_table=[0], context=Context(source=held_source(ids)))]
        )
        size = max(1, self.cache_bytes(), self.source_bytes())
        self.release(0)
        self.release_source(0)
        return size

    def _encode_one(self, source: Source) -> ModelOutput:
        ids_1S = torch.tensor([list(source.ids)], device=self.device)
        if self._state is not None:
            self._state.restore()
        output = self._module.get_encoder()(input_ids=ids_1S, attention_mask=self._whole(ids_1S), return_dict=True)
        states: ModelOutput = type(output)(last_hidden_state=output.last_hidden_state)
        return states

    def _whole(self, source_1S: Tensor) -> Tensor | None:
        """The mask of a source without padding. On the meta device a mask's values cannot be looked at."""
        return None if source_1S.is_meta else torch.ones_like(source_1S, dtype=torch.int64)

    def _takes_single_tokens(self, row: Row) -> bool:  # noqa: ARG002
        # Some with a cache look at the last token alone, whatever they are given.
        return self._resumes_token_by_token

    def _new_cache(self, row: Row) -> Any:
        own = DynamicCache(config=self._module.config)
        return EncoderDecoderCache(own, self._encoded[row.source.held.key].cross)

    def _copy(self, cache: Any) -> Any:
        return EncoderDecoderCache(copy.deepcopy(cache.self_attention_cache), cache.cross_attention_cache)

    def _of_row(self, cache: Any) -> Cache:
        own: Cache = cache.self_attention_cache
        return own

    def _compute(self, cache: Any, row: Row, part: slice, num_logits: int) -> Tensor:
        states = self._encoded[row.source.held.key].states
        ids = [int(token) for token in row.token_ids[part]]
        if self._state is not None:
            self._state.restore()
        logits: Tensor = self._module(
            encoder_outputs=states,
            attention_mask=self._whole(states.last_hidden_state[..., 0]),
            decoder_input_ids=torch.tensor([ids], device=self.device),
            past_key_values=cache,
            use_cache=True,
        ).logits
        return logits[0, -num_logits:].float()


def num_embeddings(part: Any) -> int:
    """Token ids that an encoder or a decoder can read."""
    embedding = getattr(part, "embed_tokens", None) or part.get_input_embeddings()
    return int(embedding.weight.shape[0])
