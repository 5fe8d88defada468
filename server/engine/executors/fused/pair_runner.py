"""Runs a packed encoder and decoder over one paged cache, in whose pools sources have blocks as rows have."""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.attention.backend import AttentionBackend, SourceRow
from server.engine.batch_inputs import IntArray
from server.engine.executors.fused.encoder import FusedEncoder
from server.engine.executors.fused.runner import FusedRunner
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
        self.is_row_invariant &= all(linear.is_row_invariant for linear in layout.encoder.products())

    def encode(self, texts_ids: Sequence[Sequence[int]], block_tables: Sequence[Sequence[int] | IntArray]) -> list[int]:
        """As `FusedEncoder.write`."""
        return self._encoder.write(texts_ids, block_tables)

    def read(self, rows: Sequence[SourceRow]) -> None:
        """Names the sources of the rows of the next step."""
        self.backend.begin_cross(rows)
