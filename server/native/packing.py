"""Weights in the kernels' layout, and the arguments of products with them.

Dimension key
    K, N  width of the input, rows of the weight
    P     rows of the weight with padding: a whole number of panels
"""

from __future__ import annotations

import torch
from torch import Tensor

from server.native import kernels
from server.native.abi import PANEL, Activation
from server.native.adapted import Runs
from server.native.formats import FORMATS
from server.number_types import Quantize, WeightKind

ACTIVATIONS: dict[str | None, Activation] = {None: Activation.none, **{kind.name: kind for kind in Activation if kind}}
"""By the names that `reference` gives them."""


def problem(weight_NK: Tensor, quantize: Quantize) -> str | None:
    """Why the kernels cannot take a weight, as the end of a sentence."""
    if weight_NK.device.type != "cpu" or not kernels.has("linear"):
        return "there are no CPU kernels for it here"
    if weight_NK.dtype not in (torch.float32, torch.bfloat16):
        return f"its dtype is {weight_NK.dtype}"
    num_rows, width = weight_NK.shape
    if not num_rows or not width or width % FORMATS[quantize].multiple(weight_NK.dtype):
        return f"its shape is {num_rows} x {width}"
    return None


class NativeWeight:
    """A packed weight and what its product ends with."""

    def __init__(
        self, weight_NK: Tensor, bias_N: Tensor | None, activation: str | None, *, is_gated: bool, quantize: Quantize
    ) -> None:
        num_rows, self.width = weight_NK.shape
        self._is_gated = is_gated
        self.num_outputs = num_rows // 2 if is_gated else num_rows
        self._dtype = weight_NK.dtype
        self._format = FORMATS[quantize]
        self._packed = packed = self._format.pack(self.padded(weight_NK))
        self._bias_P = None if bias_N is None else self.padded(bias_N)
        self._linear = kernels.get("linear")
        self.fixed = (packed.kind, self.width, packed.words, packed.weight.data_ptr(), *map(
            kernels.address, (packed.scale, packed.offset_P, self._bias_P)
        ), self.num_outputs, ACTIVATIONS[activation], is_gated)  # fmt: skip
        """What the kernels are told with every call."""

    @property
    def num_bytes(self) -> int:
        parts = (self._packed.weight, self._packed.scale, self._packed.offset_P, self._bias_P)
        return sum(part.numel() * part.itemsize for part in parts if part is not None)

    def multiply(
        self, x: Tensor, residual: Tensor | None, *, out_float: bool, runs: Runs | None = None, number: int = 0
    ) -> Tensor:
        """``x`` ``[..., K]`` has the dtype of the weight before it was quantised.

        ``runs`` are its rows with adapters, which know the product by ``number``.
        """
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
                            is_float or out_float, *((0, 0) if runs is None else runs.place), number)  # fmt: skip
        return out

    @property
    def has_rows(self) -> bool:
        """Whether single rows can be read from it, as from a table."""
        return self._packed.kind in (WeightKind.float32, WeightKind.bfloat16) and not self._is_gated

    def rows(self, indices_T: Tensor) -> Tensor:
        """``[T, K]``: those rows of the weight."""
        return self._packed.weight[indices_T // PANEL, :, indices_T % PANEL].view(self._dtype)

    def dense(self) -> Tensor:
        """``[N, K]`` in the first dtype."""
        weight_PK = self._format.unpack(self._packed, self._dtype)
        return self._unpadded(weight_PK).to(self._dtype)

    def padded(self, rows: Tensor) -> Tensor:
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
