"""Weights in the kernels' layout: panels of 48 rows, word after word along K, each word 32 bits of every row.

Dimension key
    M, K, N  rows of the input, its width, rows of the weight
    P        rows of the weight with padding: a whole number of panels
"""

from __future__ import annotations

import torch
from torch import Tensor

from server.native import kernels

PANEL = 48

ACTIVATIONS = {None: 0, "silu": 1, "gelu": 2, "gelu_tanh": 3, "relu": 4}
"""As `Activation` in simd.h numbers them."""

FLOAT32, BFLOAT16, INT8 = range(3)
"""As `WeightKind` in linear.h numbers them."""

KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.int8: INT8}


def problem(weight_NK: Tensor, quantize: str) -> str | None:
    """Why the kernels cannot take a weight, as the end of a sentence."""
    if weight_NK.device.type != "cpu" or not kernels.has("linear"):
        return "there are no CPU kernels for it here"
    if weight_NK.dtype not in (torch.float32, torch.bfloat16):
        return f"its dtype is {weight_NK.dtype}"
    dtype = torch.int8 if quantize == "int8" else weight_NK.dtype
    num_rows, width = weight_NK.shape
    if not num_rows or not width or width * dtype.itemsize % 4:
        return f"its shape is {num_rows} x {width}"
    return None


class NativeWeight:
    """A packed weight and what its product ends with."""

    def __init__(
        self, weight_NK: Tensor, bias_N: Tensor | None, activation: str | None, *, is_gated: bool, quantize: str
    ) -> None:
        num_rows, self._width = weight_NK.shape
        self._is_gated = is_gated
        self._num_outputs = num_rows // 2 if is_gated else num_rows
        self._activation = ACTIVATIONS[activation]
        self._dtype = weight_NK.dtype
        scale_N: Tensor | None = None
        offset_N: Tensor | None = None
        if quantize == "int8":
            weight_NK, scale_N = quantized(weight_NK)
            # Inputs are unsigned with an offset of 128: this takes it back.
            offset_N = weight_NK.sum(1, dtype=torch.int32) * 128
        self._kind = KINDS[weight_NK.dtype]
        words = self._width * weight_NK.itemsize // 4
        panels = self._padded(weight_NK.contiguous().view(torch.int32)).view(-1, PANEL, words)
        self._weight = panels.transpose(1, 2).contiguous()
        self._scale_P, self._offset_P, self._bias_P = (
            None if part is None else self._padded(part) for part in (scale_N, offset_N, bias_N)
        )
        self._linear = kernels.get("linear")
        self._fixed = (self._width, words, self._weight.data_ptr(), *map(
            kernels.address, (self._scale_P, self._offset_P, self._bias_P)
        ), self._num_outputs, self._activation, is_gated)  # fmt: skip

    @property
    def num_bytes(self) -> int:
        parts = (self._weight, self._scale_P, self._offset_P)
        return sum(part.numel() * part.itemsize for part in parts if part is not None)

    def multiply(self, x: Tensor, residual: Tensor | None, *, out_float: bool) -> Tensor:
        """``x`` ``[..., K]`` has the dtype of the weight before it was quantised."""
        rows = x.numel() // self._width
        dtype = torch.float32 if out_float else x.dtype
        out = torch.empty(*x.shape[:-1], self._num_outputs, dtype=dtype)
        if not rows:
            return out
        x = x.contiguous()
        if residual is not None:
            residual = residual.contiguous()
        is_float = x.dtype is torch.float32
        self._linear(self._kind, x.data_ptr(), is_float, rows, *self._fixed,
                            0 if residual is None else residual.data_ptr(), out.data_ptr(),
                            is_float or out_float)  # fmt: skip
        return out

    def dense(self) -> Tensor:
        """``[N, K]`` in the first dtype."""
        rows_PW = self._weight.transpose(1, 2).reshape(-1, self._weight.shape[1])
        dtype = torch.int8 if self._kind == INT8 else self._dtype
        weight_NK = self._unpadded(rows_PW.contiguous().view(dtype))
        if self._scale_P is None:
            return weight_NK
        return (weight_NK.float() * self._unpadded(self._scale_P)[:, None]).to(self._dtype)

    def _padded(self, rows: Tensor) -> Tensor:
        """``[N, ...]`` to ``[P, ...]``; a gate's panels alternate with its partner's."""
        halves = rows.view(1 + self._is_gated, self._num_outputs, *rows.shape[1:])
        padding = halves.new_zeros(halves.shape[0], -self._num_outputs % PANEL, *halves.shape[2:])
        panels = torch.cat((halves, padding), dim=1).view(halves.shape[0], -1, PANEL, *rows.shape[1:])
        return panels.transpose(0, 1).flatten(0, 2).contiguous()

    def _unpadded(self, rows: Tensor) -> Tensor:
        parts = 1 + self._is_gated
        halves = rows.view(-1, parts, PANEL, *rows.shape[1:]).transpose(0, 1).flatten(1, 2)
        return halves[:, : self._num_outputs].flatten(0, 1)


def quantized(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Each row by its largest value to -127..127, and its scale: ``row = int8 * scale``."""
    wide = weight_NK.float()
    scale_N = wide.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (wide / scale_N[:, None]).round_().to(torch.int8), scale_N
