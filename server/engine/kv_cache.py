"""Keys and values of all sequences in fixed blocks; knows slots and blocks, not sequences.

Dimension key
    H  heads of keys and values
    N  blocks of the cache
    D  width of a cached vector (the wider of key and value)
    T  new tokens in the step
    R  rows of a gather: one per (key or value, sequence, head, block)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from server.engine.batch_inputs import on_device
from server.engine.zeroed import take_pages, zeroed
from server.modules.attention import LayerSpec


class KvCache:
    """One pool a layer, laid out ``[2 (keys, values), H, N, block_size, D]``.

    Heads lie outside blocks, so a gather by block table copies whole rows of ``block_size * D`` values and its result
    is ``[2, sequences, H, tokens, D]`` without a permuting copy. Pools are zeroed and only finite values are written:
    a masked-out place still enters the attention product as ``0 * value``, and ``0 * nan`` would be ``nan``.
    """

    def __init__(
        self, specs: Sequence[LayerSpec], num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.specs = tuple(specs)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._device = device
        self._pools = [
            zeroed((2 * spec.num_kv_heads * num_blocks, block_size * spec.width), dtype, device) for spec in self.specs
        ]
        self._last_step_s = 0.0
        take_pages(self._pools, lambda: self._last_step_s)

    @property
    def num_bytes(self) -> int:
        return sum(pool.numel() * pool.itemsize for pool in self._pools)

    def write_rows(self, slots_T: Tensor, num_kv_heads: int) -> Tensor:
        """Where `write` puts new tokens: rows of ``[2, H, T]``, flat. The same for all layers of ``num_kv_heads``."""
        self._last_step_s = time.monotonic()
        planes = torch.arange(2 * num_kv_heads, device=slots_T.device) * (self.num_blocks * self.block_size)
        return (planes[:, None] + slots_T).view(-1)

    def gather_rows(self, block_tables: Tensor, num_kv_heads: int) -> Tensor:
        """Rows that `gather` reads for ``block_tables`` ``[sequences, blocks]``."""
        planes = torch.arange(2 * num_kv_heads, device=block_tables.device).view(2, 1, num_kv_heads, 1)
        return (planes * self.num_blocks + block_tables[None, :, None, :]).view(-1)

    def write(self, layer: int, keys_HTD: Tensor, values_HTD: Tensor, rows: Tensor) -> None:
        spec = self.specs[layer]
        if spec.key_dim != spec.value_dim:
            keys_HTD, values_HTD = (
                torch.nn.functional.pad(x, (0, spec.width - x.shape[-1])) for x in (keys_HTD, values_HTD)
            )
        new = torch.stack((keys_HTD, values_HTD)).nan_to_num_(0.0, 0.0, 0.0)
        self._pools[layer].view(-1, spec.width).index_copy_(0, rows, new.view(-1, spec.width))

    def gather(self, layer: int, rows_R: Tensor, out: Tensor) -> Tensor:
        """Copy ``rows_R`` into ``out`` ``[R, block_size * D]``."""
        return torch.index_select(self._pools[layer], 0, rows_R, out=out)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        sources, destinations = on_device(np.array(pairs, dtype=np.int64).reshape(-1, 2), self._device).unbind(1)
        for blocks in self._planes():
            blocks[:, destinations] = blocks[:, sources]

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        cleared = on_device(np.array(blocks, dtype=np.int64), self._device)
        for planes in self._planes():
            planes.index_fill_(1, cleared, 0.0)

    def _planes(self) -> Iterator[Tensor]:
        """Each layer's pool as ``[2 * H, N, block_size * D]``."""
        for spec, pool in zip(self.specs, self._pools, strict=True):
            yield pool.view(2 * spec.num_kv_heads, self.num_blocks, -1)
