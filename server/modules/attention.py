"""What one attention call of a module looks like, and what is done to its queries and keys before.

Dimension key
    T     tokens
    H     heads of queries
    Dk    width of a key
    P, R  positions of the model, rotated pairs of a head
    L     distances in a table, with the margins at its ends
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from server.native.abi import BIAS_MARGIN


@dataclass(frozen=True, kw_only=True, eq=False)
class DistanceBias:
    """What each head adds to a scaled score by the distance of the key from its query, as T5 does.

    A key beyond either end of the table has what the end has.
    """

    table_HL: Tensor
    """Float32, from keys far before the query to keys far behind it; `BIAS_MARGIN` places at both ends are alike."""
    middle: int
    """The place of a key at its query."""

    @classmethod
    def of(cls, values_HD: Tensor, num_before: int) -> DistanceBias:
        """``values_HD`` are those of distances ``-num_before``, ``1 - num_before``, ..."""
        first, last = values_HD[:, :1], values_HD[:, -1:]
        parts = (first.expand(-1, BIAS_MARGIN), values_HD, last.expand(-1, BIAS_MARGIN))
        return cls(table_HL=torch.cat(parts, dim=1).float().contiguous(), middle=BIAS_MARGIN + num_before)

    def at(self, distances: Tensor) -> Tensor:
        """``[H, *distances.shape]``; a distance is the key's position less the query's."""
        return self.table_HL[:, (distances + self.middle).clamp(0, self.table_HL.shape[1] - 1)]


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """What one attention call of the model looks like, as seen in a probe forward."""

    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    scaling: float
    window: int | None = None
    """Sliding window: a token sees itself and the ``window - 1`` tokens before it."""
    softcap: float | None = None
    has_sinks: bool = False
    bias: DistanceBias | None = None

    @property
    def projected_widths(self) -> list[int]:
        """Of a token's queries, keys and values, as they lie in one product."""
        keys, values = self.num_kv_heads * self.key_dim, self.num_kv_heads * self.value_dim
        return [self.num_heads * self.key_dim, keys, values]

    @property
    def attended_width(self) -> int:
        """Of all heads' results."""
        return self.num_heads * self.value_dim

    def split(self, qkv_TX: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[T, heads, width]`` of a product of the three projections."""
        query, key, value = torch.split(qkv_TX, self.projected_widths, dim=-1)
        return (
            query.view(-1, self.num_heads, self.key_dim),
            key.view(-1, self.num_kv_heads, self.key_dim),
            value.view(-1, self.num_kv_heads, self.value_dim),
        )

    @property
    def width(self) -> int:
        return max(self.key_dim, self.value_dim)

    def block_bytes(self, block_size: int, dtype: torch.dtype) -> int:
        return 2 * self.num_kv_heads * block_size * self.width * dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotary positions, place i of a head with place i + R. Float32; scaling of the model is in the tables."""

    cos_PR: Tensor
    sin_PR: Tensor


@dataclass(frozen=True, kw_only=True)
class HeadNorm:
    """RMS norm of each query and key head before its rotation. Weights float32, ``[Dk]``."""

    query_weight_D: Tensor
    key_weight_D: Tensor
    eps: float
