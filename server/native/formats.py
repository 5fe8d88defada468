"""How each type of weights is packed for the kernels, and what its numbers are in torch.

Panels have 48 rows, word after word along K, each word 32 bits of every row. Scales lie in panels too.

Dimension key
    M, K, N  rows of an input, its width, rows of the weight
    P        rows of the weight with padding: a whole number of panels
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from server.native import reference
from server.native.abi import PANEL
from server.number_types import WEIGHT_TYPES, Quantize, WeightKind

INT4_GROUP = WEIGHT_TYPES["int4"].group or 0

INT4_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Parts of the largest weight that may become the largest int4: cutting it off often makes all others better."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A weight as the kernels read it."""

    kind: WeightKind
    words: int
    """Of 32 bits along K, as they are multiplied."""
    weight: Tensor
    scale: Tensor | None = None
    offset_P: Tensor | None = None
    """What every sum has too much."""


class Format(ABC):
    """One type of weights."""

    @abstractmethod
    def multiple(self, dtype: torch.dtype) -> int:
        """Of which K must be one, for a weight of ``dtype``."""

    @abstractmethod
    def pack(self, weight_PK: Tensor) -> Packed: ...

    @abstractmethod
    def unpack(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        """``[P, K]``. ``dtype`` is that of the weight that was packed."""

    @abstractmethod
    def rounded(self, weight_NK: Tensor) -> Tensor:
        """What the product is a product with, without packing it: the oracle of the kernels."""

    def rounded_input(self, x_MK: Tensor) -> Tensor:
        """What the product makes of its input."""
        return x_MK


class Plain(Format):
    """Float32 and bfloat16, as they are."""

    def multiple(self, dtype: torch.dtype) -> int:
        return 4 // dtype.itemsize

    def pack(self, weight_PK: Tensor) -> Packed:
        kind = WeightKind.float32 if weight_PK.dtype == torch.float32 else WeightKind.bfloat16
        words = weight_PK.shape[1] * weight_PK.itemsize // 4
        return Packed(kind=kind, words=words, weight=panels(weight_PK.view(torch.int32)))

    def unpack(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        return rows(packed.weight).view(dtype)

    def rounded(self, weight_NK: Tensor) -> Tensor:
        return weight_NK


class Int8(Format):
    """One scale for each row. The input is rounded to int8 too."""

    def multiple(self, dtype: torch.dtype) -> int:  # noqa: ARG002
        return 4

    def pack(self, weight_PK: Tensor) -> Packed:
        whole_PK, scale_P = quantized(weight_PK)
        return Packed(
            kind=WeightKind.int8,
            words=whole_PK.shape[1] // 4,
            weight=panels(whole_PK.view(torch.int32)),
            scale=scale_P,
            # Inputs are unsigned with an offset of 128: this takes it back.
            offset_P=whole_PK.sum(1, dtype=torch.int32) * 128,
        )

    def unpack(self, packed: Packed, dtype: torch.dtype) -> Tensor:  # noqa: ARG002
        assert packed.scale is not None
        return rows(packed.weight).view(torch.int8).float() * packed.scale[:, None]

    def rounded(self, weight_NK: Tensor) -> Tensor:
        whole_NK, scale_N = quantized(weight_NK)
        return whole_NK * scale_N[:, None]

    def rounded_input(self, x_MK: Tensor) -> Tensor:
        whole_MK, scale_M1 = reference.quantized_rows(x_MK)
        return whole_MK * scale_M1


class Int4(Format):
    """One scale for 32 weights. The kernels make the weight's own type of them before they multiply."""

    def multiple(self, dtype: torch.dtype) -> int:  # noqa: ARG002
        return INT4_GROUP

    def pack(self, weight_PK: Tensor) -> Packed:
        nibbles, scales = quantized_int4(weight_PK)
        return Packed(
            kind=WeightKind.int4,
            words=weight_PK.shape[1] * weight_PK.itemsize // 4,
            weight=panels(nibbles[:, ::2] | nibbles[:, 1::2] << 4),
            scale=panels(scales),
        )

    def unpack(self, packed: Packed, dtype: torch.dtype) -> Tensor:  # noqa: ARG002
        assert packed.scale is not None
        pairs = rows(packed.weight)
        nibbles = torch.stack((pairs & 15, pairs >> 4), dim=-1).view(len(pairs), -1)
        return _scaled(nibbles, rows(packed.scale))

    def rounded(self, weight_NK: Tensor) -> Tensor:
        return _scaled(*quantized_int4(weight_NK)).to(weight_NK.dtype)


FORMATS: dict[Quantize, Format] = {"none": Plain(), "int8": Int8(), "int4": Int4()}


def panels(rows_PW: Tensor) -> Tensor:
    """``[P, W]`` to ``[panels, W, 48]``."""
    return rows_PW.view(-1, PANEL, rows_PW.shape[1]).transpose(1, 2).contiguous()


def rows(panels: Tensor) -> Tensor:
    """Back to ``[P, W]``."""
    return panels.transpose(1, 2).reshape(-1, panels.shape[1]).contiguous()


def quantized(weight_PK: Tensor) -> tuple[Tensor, Tensor]:
    """Each row by its largest value to -127..127, and its scale: ``row = int8 * scale``."""
    wide = weight_PK.float()
    scale_P = wide.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (wide / scale_P[:, None]).round_().to(torch.int8), scale_P


def quantized_int4(weight_PK: Tensor) -> tuple[Tensor, Tensor]:
    """Each 32 weights of a row to 0..15, and their scales in bfloat16: ``weight = (nibble - 8) * scale``.

    The weight of the largest size becomes -8; of several scales the one with the least squared error is taken.
    """
    groups = weight_PK.float().view(weight_PK.shape[0], -1, INT4_GROUP)
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    best = torch.full_like(largest, torch.inf)
    scales, nibbles = torch.zeros_like(largest), torch.full_like(groups, 8)
    for shrink in INT4_SHRINKS:
        scale = (largest * (shrink / -8)).bfloat16().float()
        values = torch.where(scale == 0, 0.0, groups / scale).round_().clamp_(-8, 7)
        error = (values * scale - groups).square_().sum(2, keepdim=True)
        is_better = error < best
        best = torch.where(is_better, error, best)
        scales, nibbles = torch.where(is_better, scale, scales), torch.where(is_better, values + 8, nibbles)
    return nibbles.to(torch.uint8).view(weight_PK.shape), scales.squeeze(2).bfloat16()


def _scaled(nibbles_PK: Tensor, scales: Tensor) -> Tensor:
    return (nibbles_PK.float() - 8) * scales.float().repeat_interleave(INT4_GROUP, dim=1)
