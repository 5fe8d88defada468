"""Products by oneDNN through torch, with weights packed into its own layout where that works, else torch's plain way.

`torch.nn.functional.linear` on the CPU hands oneDNN a plain weight, which oneDNN packs again in every call.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

log = logging.getLogger("sluice.native")

PROBE_ROWS = (1, 2, 5, 33)

PROBE_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Largest difference from F.linear, as a part of the largest output. Other dtypes are not packed."""


class Product(nn.Module):
    """``x @ weight.T + bias`` for a weight ``[N, K]`` on any device."""

    def __init__(self, weight_NK: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_NK.shape
        self.num_bytes = weight_NK.numel() * weight_NK.itemsize
        self.pads_single_row = weight_NK.device.type == "cpu" and weight_NK.dtype == torch.float32
        """A single row takes another kernel than a batch does, and its result may depend on batch mates: often in
        float32, hardly ever in bfloat16, where the other kernel is much slower."""
        self._plain_NK: Tensor | None = None
        self._packed: Tensor | None = None
        if weight_NK.device.type == "cpu" and packing_works(weight_NK.dtype):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_NK.contiguous())
        else:
            self._plain_NK = weight_NK

    def forward(self, x: Tensor, bias_N: Tensor | None = None) -> Tensor:
        """``x`` is ``[..., K]``, the result ``[..., N]`` in its dtype, which is the weight's."""
        rows = x.numel() // self.in_features
        if rows == 1 and self.pads_single_row:
            padded = x.reshape(1, -1).expand(2, -1).contiguous()
            return self._multiply(padded, bias_N)[:1].view(*x.shape[:-1], self.out_features)
        if rows == 0:
            return x.new_zeros(*x.shape[:-1], self.out_features)
        return self._multiply(x, bias_N)

    def _multiply(self, x: Tensor, bias_N: Tensor | None) -> Tensor:
        if self._plain_NK is not None:
            return functional.linear(x, self._plain_NK, bias_N)
        assert self._packed is not None
        return packed_product(x, self._packed, bias_N)

    @property
    def plain_weight(self) -> Tensor | None:
        """``[N, K]`` where it is kept as it was given."""
        return self._plain_NK

    def dense(self) -> Tensor:
        if self._plain_NK is not None:
            return self._plain_NK
        assert self._packed is not None
        return self._packed.to_dense()


def packed_product(x: Tensor, packed: Tensor, bias_N: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias_N, "none", [], "")
    return out


@cache
def packing_works(dtype: torch.dtype) -> bool:
    """Whether packed products exist here and agree with F.linear on small inputs."""
    if dtype not in PROBE_TOLERANCE:
        return False
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 80, generator=generator).to(dtype)
    bias = torch.randn(48, generator=generator).to(dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        for rows in PROBE_ROWS:
            x = torch.randn(rows, 80, generator=generator).to(dtype)
            expected = functional.linear(x, weight, bias).float()
            ours = packed_product(x, packed, bias)
            worst = (ours.float() - expected).abs().max()
            if not worst <= PROBE_TOLERANCE[dtype] * expected.abs().max():
                log.warning("packed %s products differ from torch's by %.2g and are not used", dtype, worst)
                return False
    except (RuntimeError, AttributeError) as error:
        log.warning("packed %s products are not available: %s", dtype, error)
        return False
    return True
