"""Runs a packed encoder and decoder over one paged cache, in whose pools sources have blocks as rows have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from server.engine.attention.backend import AttentionBackend, SourceRow
from server.engine.batch_inputs import Row
from server.engine.encoding import SourcePart, whole
from server.engine.executors.fused.encoder import FusedEncoder, Reading
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
        self.encoder_passes = self._encoder.costs
        self._readings: dict[int, Reading] = {}
        """Sources of which a part is encoded, by key."""
        self._failed_sources: set[int] = set()
        """Keys of those whose keys or values were not finite."""
        self.weight_bytes = held_bytes(layout)
        self.source_vocab_size = layout.encoder.embedding.num_tokens
        self.is_row_invariant &= all(linear.is_row_invariant for linear in layout.encoder.products())

    def forward(self, rows: Sequence[Row]) -> Tensor:
        sources = [row.source for row in rows]
        fresh = {source.held.key: source for source in sources if not source.is_computed}
        self.encode([whole(source, self.encoder_passes) for source in fresh.values()])
        self.backend.begin_cross(
            [
                SourceRow(len(row.token_ids), len(source.ids), source.held.block_table)
                for row, source in zip(rows, sources, strict=True)
            ]
        )
        logits_RV = super().forward(rows)
        if self._failed_sources:
            self._fail([source.held.key in self._failed_sources for source in sources], rows, logits_RV)
        return logits_RV

    @torch.inference_mode()
    def encode(self, parts: Sequence[SourcePart]) -> None:
        """Sources that are read from beginning to end in this step are read together, each of the others alone."""
        together: list[Source] = []
        for part in parts:
            if part.is_last and part.source.held.key not in self._readings:
                together.append(part.source)
            else:
                self._go_on(part)
        if together:
            reading = self._begin(together)
            self._encoder.advance(reading, self.encoder_passes.num_units(sum(len(source.ids) for source in together)))
            self._note(together, reading)

    def release_source(self, key: int) -> None:
        self._readings.pop(key, None)
        self._failed_sources.discard(key)

    @property
    def num_readings(self) -> int:
        """Sources of which a part is encoded."""
        return len(self._readings)

    def _begin(self, sources: Sequence[Source]) -> Reading:
        return self._encoder.begin([source.ids for source in sources], [source.held.block_table for source in sources])

    def _go_on(self, part: SourcePart) -> None:
        key = part.source.held.key
        reading = self._readings.get(key) or self._begin([part.source])
        self._readings[key] = reading
        self._encoder.advance(reading, part.stop)
        if part.is_last:
            del self._readings[key]
            self._note([part.source], reading)

    def _note(self, sources: Sequence[Source], reading: Reading) -> None:
        for i, source in enumerate(sources):
            if i in reading.failed:
                self._failed_sources.add(source.held.key)
            else:
                self._failed_sources.discard(source.held.key)

    def _fail(self, is_failed: Sequence[bool], rows: Sequence[Row], logits_RV: Tensor) -> None:
        """The blocks of a source have zeros in place of what is not finite: rows that read it must not seem right."""
        start = 0
        for row, fails in zip(rows, is_failed, strict=True):
            if fails:
                logits_RV[start : start + row.num_logits] = math.nan
            start += row.num_logits
        unseen = {i for i, row in enumerate(rows) if is_failed[i] and not row.num_logits}
        self.failed_rows = sorted(unseen | set(self.failed_rows))
