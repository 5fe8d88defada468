"""Runs a packed encoder and decoder over one paged cache, in whose pools sources have blocks as rows have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from server.engine.attention.backend import AttentionBackend, SourceRow
from server.engine.batch_inputs import Row
from server.engine.executors.fused.encoder import FusedEncoder
from server.engine.executors.fused.runner import FusedRunner
from server.engine.sources import Source
from server.modules.layout import EncoderDecoder
from server.modules.products import held_bytes
from server.native.linear import Linear


class FusedPairRunner(FusedRunner):
    """A decoder whose rows attend to sources that its encoder has read."""

    def __init__(
        self,
        layout: EncoderDecoder[Linear],
        backend: AttentionBackend,
        *,
        num_blocks: int,
        block_size: int,
        vocab_size: int,
    ) -> None:
        super().__init__(layout.decoder, backend, num_blocks=num_blocks, block_size=block_size, vocab_size=vocab_size)
        self._encoder = FusedEncoder(layout, backend)
        self.weight_bytes = held_bytes(layout)
        self.source_vocab_size = layout.encoder.embedding.num_tokens
        self.is_row_invariant &= all(linear.is_row_invariant for linear in layout.encoder.products())

    def forward(self, rows: Sequence[Row]) -> Tensor:
        sources = [row.source for row in rows]
        failed = self._encode({source.held.key: source for source in sources if not source.is_computed})
        self.backend.begin_cross(
            [
                SourceRow(len(row.token_ids), len(source.ids), source.held.block_table)
                for row, source in zip(rows, sources, strict=True)
            ]
        )
        logits_RV = super().forward(rows)
        if failed:
            self._fail([source.held.key in failed for source in sources], rows, logits_RV)
        return logits_RV

    @torch.inference_mode()
    def _encode(self, fresh: dict[int, Source]) -> set[int]:
        """Returns the keys of sources whose keys or values were not finite."""
        if not fresh:
            return set()
        tables = [source.held.block_table for source in fresh.values()]
        keys = list(fresh)
        return {keys[i] for i in self._encoder.write([source.ids for source in fresh.values()], tables)}

    def _fail(self, is_failed: Sequence[bool], rows: Sequence[Row], logits_RV: Tensor) -> None:
        """The blocks of a source have zeros in place of what is not finite: rows that read it must not seem right."""
        start = 0
        for row, fails in zip(rows, is_failed, strict=True):
            if fails:
                logits_RV[start : start + row.num_logits] = math.nan
            start += row.num_logits
        unseen = {i for i, row in enumerate(rows) if is_failed[i] and not row.num_logits}
        self.failed_rows = sorted(unseen | set(self.failed_rows))
