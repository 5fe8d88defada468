"""Sources in the blocks of a cache, by torch's own operations: their keys and values are written, and attended to.

Dimension key
    S     tokens of all sources that are written
    T     new tokens in the step
    C     tokens of one source
    Q     tokens of the step that see it
    H, D  key/value heads, width of keys or values
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from server.engine.attention.backend import SourceRow
from server.engine.batch_inputs import on_device, slot_mapping
from server.engine.kv_cache import KvCache


class Sources:
    """Row by row, so that no result depends on another row."""

    def __init__(self, cache: KvCache, device: torch.device) -> None:
        self._cache = cache
        self._device = device
        self._written: Sequence[SourceRow] = ()
        self._read: Sequence[SourceRow] = ()
        self._failed_S = torch.zeros(0, dtype=torch.bool)

    def begin_writing(self, sources: Sequence[SourceRow]) -> None:
        self._written = sources
        num_tokens = sum(row.num_tokens for row in sources)
        self._failed_S = torch.zeros(num_tokens, dtype=torch.bool, device=self._device)
        size = self._cache.block_size
        slots = [slot_mapping(row.block_table, row.first, row.first + row.num_tokens, size) for row in sources]
        self._slots_S = on_device(np.concatenate(slots), self._device)

    def write(self, layer: int, kv_SX: Tensor) -> None:
        spec = self._cache.specs[layer]
        keys, values = torch.split(kv_SX, spec.projected_widths[1:], dim=-1)
        keys_HSD = keys.reshape(-1, spec.num_kv_heads, spec.key_dim).transpose(0, 1)
        values_HSD = values.reshape(-1, spec.num_kv_heads, spec.value_dim).transpose(0, 1)
        self._failed_S |= ~kv_SX.isfinite().all(-1)
        self._cache.write(layer, keys_HSD, values_HSD, self._cache.write_rows(self._slots_S, spec.num_kv_heads))

    def failed(self) -> list[int]:
        parts = torch.split(self._failed_S, [row.num_tokens for row in self._written])
        return [i for i, part in enumerate(parts) if bool(part.any())]

    def begin_reading(self, rows: Sequence[SourceRow]) -> None:
        self._read = rows

    def attend(self, layer: int, query_TX: Tensor) -> Tensor:
        spec = self._cache.specs[layer]
        query_THD = query_TX.reshape(-1, spec.num_heads, spec.key_dim)
        queries = torch.split(query_THD, [row.num_tokens for row in self._read])
        parts = zip(queries, self._read, strict=True)
        return torch.cat([self._attend(layer, query_QHD, row) for query_QHD, row in parts]).flatten(1)

    def _attend(self, layer: int, query_QHD: Tensor, row: SourceRow) -> Tensor:
        spec, size = self._cache.specs[layer], self._cache.block_size
        blocks = np.asarray(row.block_table[: -(-row.num_source // size)], dtype=np.int64)
        rows_R = self._cache.gather_rows(on_device(blocks[None], self._device), spec.num_kv_heads)
        found = self._cache.gather(layer, rows_R, out=query_QHD.new_empty(len(rows_R), size * spec.width))
        keys, values = found.view(2, 1, spec.num_kv_heads, -1, spec.width)[..., : row.num_source, :]
        out = scaled_dot_product_attention(
            query_QHD.transpose(0, 1)[None],
            keys[..., : spec.key_dim],
            values[..., : spec.value_dim],
            scale=spec.scaling,
            enable_gqa=spec.num_heads != spec.num_kv_heads,
        )
        return out[0].transpose(0, 1)
