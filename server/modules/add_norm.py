"""A norm of the sum of two vectors, for layers whose hidden states are normed after each addition.

Dimension key: T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from server.modules.parts import Norm
from server.native import kernels

KERNEL_DTYPES = (torch.float32, torch.bfloat16)
KERNEL_STEP = 16
"""Of the width."""


class AddNorm:
    """``hidden = norm(hidden + x)`` in place, in float32; the result is that in the dtype of the products."""

    def __init__(self, norm: Norm, dtype: torch.dtype) -> None:
        assert norm.is_centred, "only layer norms"
        self._norm = norm
        self._dtype = dtype
        is_known = dtype in KERNEL_DTYPES and len(norm.weight_D) % KERNEL_STEP == 0 and norm.bias_D is not None
        self._has_kernel = is_known and norm.weight_D.is_cpu and kernels.has("encoder_add_norm")

    @property
    def width(self) -> int:
        return self._norm.weight_D.shape[0]

    def __call__(self, x_TD: Tensor, hidden_TD: Tensor) -> Tensor:
        norm = self._norm
        if not self._has_kernel or x_TD.dtype not in KERNEL_DTYPES:
            hidden_TD.add_(x_TD)
            normed = functional.layer_norm(hidden_TD, hidden_TD.shape[-1:], norm.weight_D, norm.bias_D, norm.eps)
            return hidden_TD.copy_(normed).to(self._dtype)
        assert norm.bias_D is not None
        is_copied = self._dtype is not torch.float32
        out_TD = torch.empty(hidden_TD.shape, dtype=self._dtype) if is_copied else hidden_TD
        kernels.get("encoder_add_norm")(
            x_TD.data_ptr(), hidden_TD.data_ptr(), out_TD.data_ptr() if is_copied else 0,
            norm.weight_D.data_ptr(), norm.bias_D.data_ptr(),
            *hidden_TD.shape, norm.eps, x_TD.dtype is torch.bfloat16,
        )  # fmt: skip
        return out_TD
