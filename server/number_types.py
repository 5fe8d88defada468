"""The number types of weights and of the KV cache, each described once for settings, plans and kernels.

How weights become such numbers is in `server.native.formats`, what they are in torch for the cache in
`server.native.reference`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

Quantize = Literal["none", "int8", "int4"]
KvDtype = Literal["auto", "int8"]


class WeightKind(IntEnum):
    """How a product's weight is held. The kernels have the same numbers."""

    float32, bfloat16, int8, int4 = range(4)


class CacheKind(IntEnum):
    """What the KV cache holds: numbers as the model computes them (``own``), or others. The kernels have the same."""

    own, int8 = range(2)


@dataclass(frozen=True, kw_only=True)
class WeightType:
    """A quantisation of weights."""

    kind: WeightKind
    bits: int
    """Of a weight."""
    group: int | None = None
    """Neighbouring weights of a row that share a scale of 16 bits. None: a row has one scale, which hardly counts."""

    @property
    def least_bytes(self) -> float:
        """Of a weight, without scales."""
        return self.bits / 8

    @property
    def num_bytes(self) -> float:
        """Of a weight, with its part of the scales."""
        return self.least_bytes + (2 / self.group if self.group else 0)


@dataclass(frozen=True, kw_only=True)
class CacheType:
    """A type of the KV cache."""

    kind: CacheKind
    bits: int | None
    """Of a number. None: those of the model's own type."""
    scale_bytes: int = 0
    """Of a token's key or value, in each head."""

    def vector_bytes(self, width: int, own_itemsize: int) -> int:
        """Of a key or a value with its scale; ``own_itemsize`` is that of the model's own type."""
        return width * (self.bits or 8 * own_itemsize) // 8 + self.scale_bytes


WEIGHT_TYPES: dict[Quantize, WeightType] = {
    "int8": WeightType(kind=WeightKind.int8, bits=8),
    "int4": WeightType(kind=WeightKind.int4, bits=4, group=32),
}

CACHE_TYPES: dict[KvDtype, CacheType] = {
    "auto": CacheType(kind=CacheKind.own, bits=None),
    "int8": CacheType(kind=CacheKind.int8, bits=8, scale_bytes=2),
}
