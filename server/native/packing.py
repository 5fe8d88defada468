"""Weights in the kernels' layout: panels of 48 rows, word after word along K, each word 32 bits of every row.

Dimension key
    M, K, N  rows of the input, its width, rows of the weight
    P        rows of the weight with padding: a whole number of panels
"""

from __future__ import annotations

import torch
from torch import Tensor

from server.native import kernels
from server.native.abi import INT4_GROUP, PANEL, Activation, WeightKind

ACTIVATIONS: dict[str | None, Activation] = {None: Activation.none, **{kind.name: kind for kind in Activation if kind}}
"""By the names that `reference` gives them."""

INT4_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Parts of the largest weight that may become the largest int4: cutting it off often makes all others better."""


def problem(weight_NK: Tensor, quantize: str) -> str | None:
    """Why the kernels cannot take a weight, as the end of a sentence."""
    if weight_NK.device.type != "cpu" or not kernels.has("linear"):
        return "there are no CPU kernels for it here"
    if weight_NK.dtype not in (torch.float32, torch.bfloat16):
        return f"its dtype is {weight_NK.dtype}"
    num_rows, width = weight_NK.shape
    multiple = {"int8": 4, "int4": INT4_GROUP}.get(quantize, 4 // weight_NK.itemsize)
    if not num_rows or not width or width % multiple:
        return f"its shape is {num_rows} x {width}"
    return None


class NativeWeight:
    """A packed weight and what its product ends with."""

    def __init__(
        self, weight_NK: Tensor, bias_N: Tensor | None, activation: str | None, *, is_gated: bool, quantize: str
    ) -> None:
        num_rows, self.width = weight_NK.shape
        self._is_gated = is_gated
        self.num_outputs = num_rows // 2 if is_gated else num_rows
        self._activation = ACTIVATIONS[activation]
        self._dtype = weight_NK.dtype
        self._scale: Tensor | None = None
        self._offset_P: Tensor | None = None
        weight_PK = self._padded(weight_NK)
        if quantize == "int4":
            self._kind, words = WeightKind.int4, self.width // (2 if self._dtype == torch.bfloat16 else 1)
            nibbles, scales = quantized_int4(weight_PK)
            pairs = nibbles[:, ::2] | nibbles[:, 1::2] << 4
            self._weight, self._scale = _panels(pairs), _panels(scales)
        elif quantize == "int8":
            self._kind, words = WeightKind.int8, self.width // 4
            weight_PK, self._scale = quantized(weight_PK)
            # Inputs are unsigned with an offset of 128: this takes it back.
            self._offset_P = weight_PK.sum(1, dtype=torch.int32) * 128
            self._weight = _panels(weight_PK.view(torch.int32))
        else:
            self._kind, words = (
                (WeightKind.bfloat16, WeightKind.float32)[self._dtype == torch.float32],
                self.width * self._dtype.itemsize // 4,
            )
            self._weight = _panels(weight_PK.view(torch.int32))
        self._bias_P = None if bias_N is None else self._padded(bias_N)
        self._linear = kernels.get("linear")
        self.fixed = (self._kind, self.width, words, self._weight.data_ptr(), *map(
            kernels.address, (self._scale, self._offset_P, self._bias_P)
        ), self.num_outputs, self._activation, is_gated)  # fmt: skip
        """What the kernels are told with every call."""

    @property
    def num_bytes(self) -> int:
        parts = (self._weight, self._scale, self._offset_P, self._bias_P)
        return sum(part.numel() * part.itemsize for part in parts if part is not None)

    def multiply(self, x: Tensor, residual: Tensor | None, *, out_float: bool) -> Tensor:
        """``x`` ``[..., K]`` has the dtype of the weight before it was quantised."""
        rows = x.numel() // self.width
        shape = (rows, self.num_outputs) if x.dim() == 2 else (*x.shape[:-1], self.num_outputs)
        out = x.new_empty(shape, dtype=torch.float32) if out_float else x.new_empty(shape)
        if not rows:
            return out
        x = x.contiguous()
        if residual is not None:
            residual = residual.contiguous()
        is_float = x.dtype is torch.float32
        self._linear(x.data_ptr(), is_float, rows, *self.fixed,
                            0 if residual is None else residual.data_ptr(), out.data_ptr(),
                            is_float or out_float)  # fmt: skip
        return out

    @property
    def has_rows(self) -> bool:
        """Whether single rows can be read from it, as from a table."""
        return self._kind in (WeightKind.float32, WeightKind.bfloat16) and not self._is_gated

    def rows(self, indices_T: Tensor) -> Tensor:
        """``[T, K]``: those rows of the weight."""
        return self._weight[indices_T // PANEL, :, indices_T % PANEL].view(self._dtype)

    def dense(self) -> Tensor:
        """``[N, K]`` in the first dtype."""
        rows = _rows(self._weight)
        if self._kind == WeightKind.int4:
            assert self._scale is not None
            values = torch.stack((rows & 15, rows >> 4), dim=-1).view(-1, self.width).float() - 8
            weight_PK = values * _rows(self._scale).float().repeat_interleave(INT4_GROUP, dim=1)
        elif self._kind == WeightKind.int8:
            assert self._scale is not None
            weight_PK = rows.view(torch.int8).float() * self._scale[:, None]
        else:
            weight_PK = rows.view(self._dtype)
        return self._unpadded(weight_PK).to(self._dtype)

    def _padded(self, rows: Tensor) -> Tensor:
        """``[N, ...]`` to ``[P, ...]``; a gate's panels alternate with its partner's."""
        halves = rows.view(1 + self._is_gated, self.num_outputs, *rows.shape[1:])
        num_missing = -self.num_outputs % PANEL
        if num_missing:
            padding = halves.new_zeros(halves.shape[0], num_missing, *halves.shape[2:])
            halves = torch.cat((halves, padding), dim=1)
        # Nothing is copied where nothing is moved: weights are large.
        return halves.view(halves.shape[0], -1, PANEL, *rows.shape[1:]).transpose(0, 1).flatten(0, 2).contiguous()

    def _unpadded(self, rows: Tensor) -> Tensor:
        parts = 1 + self._is_gated
        halves = rows.view(-1, parts, PANEL, *rows.shape[1:]).transpose(0, 1).flatten(1, 2)
        return halves[:, : self.num_outputs].flatten(0, 1)


def _panels(rows_PW: Tensor) -> Tensor:
    """``[P, W]`` to ``[panels, W, 48]``."""
    return rows_PW.view(-1, PANEL, rows_PW.shape[1]).transpose(1, 2).contiguous()


def _rows(panels: Tensor) -> Tensor:
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
