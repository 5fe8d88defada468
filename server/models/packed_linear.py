"""Linear layers with weights packed once into oneDNN's own layout.

`torch.nn.functional.linear` on the CPU hands oneDNN a plain weight, which oneDNN packs again in every call.

Dimension key: M rows of the input, K input width, N output width.
"""

from __future__ import annotations

import logging
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

log = logging.getLogger("sluice.models")

PACKED_DTYPES = (torch.float32, torch.bfloat16)

PROBE_ROWS = (1, 2, 5, 33)

PROBE_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Largest difference from F.linear, as a part of the largest output."""


class PackedLinear(nn.Module):
    """``F.linear`` with a packed weight; it replaces an `nn.Linear` or a GPT-2 `Conv1D`.

    The packed weight is not a parameter: of the module's state nothing is left but the bias.
    """

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_NK.shape
        self.bias = None if bias_N is None else bias_N.detach()
        self.pads_single_row = weight_NK.dtype == torch.float32
        """A single row takes another kernel than a batch does, and its result may depend on batch mates: often in
        float32, hardly ever in bfloat16, where the other kernel is much slower."""
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_NK.detach().contiguous())
        self.weight_bytes = weight_NK.numel() * weight_NK.itemsize

    @cached_property
    def weight(self) -> Tensor:
        """The plain weight, kept from the first time that a model reads it by itself: Mamba and MobileBERT do."""
        plain: Tensor = self._packed.to_dense()
        return plain

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        if rows == 1 and self.pads_single_row:
            padded = x.reshape(1, -1).expand(2, -1).contiguous()
            return self._linear(padded)[:1].view(*x.shape[:-1], self.out_features)
        if rows == 0:
            return x.new_zeros(*x.shape[:-1], self.out_features)
        return self._linear(x)

    def _linear(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return out

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def pack_linears(module: nn.Module) -> int:
    """Replace every linear on the CPU by a packed one and free its weight; returns how many were replaced.

    Nothing changes for devices and dtypes that oneDNN does not pack for. A weight shared with another module (a tied
    embedding) stays for the other's sake.
    """
    works: dict[torch.dtype, bool] = {}
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            linear = _weight_and_bias(child)
            if linear is None:
                continue
            weight_NK, bias_N = linear
            # oneDNN has no product without outputs, which a MobileBERT with an embedding of its full width has.
            if weight_NK.device.type != "cpu" or weight_NK.dtype not in PACKED_DTYPES or not weight_NK.numel():
                continue
            if weight_NK.dtype not in works:
                works[weight_NK.dtype] = packing_works(weight_NK.dtype)
            if not works[weight_NK.dtype]:
                continue
            setattr(parent, name, PackedLinear(weight_NK, bias_N))
            count += 1
    return count


def packing_works(dtype: torch.dtype) -> bool:
    """Whether packed linears exist here and agree with F.linear on small inputs."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 80, generator=generator).to(dtype)
    bias = torch.randn(48, generator=generator).to(dtype)
    try:
        packed = PackedLinear(weight, bias)
        for rows in PROBE_ROWS:
            x = torch.randn(rows, 80, generator=generator).to(dtype)
            expected = nn.functional.linear(x, weight, bias).float()
            worst = (packed(x).float() - expected).abs().max()
            if not worst <= PROBE_TOLERANCE[dtype] * expected.abs().max():
                log.warning("packed %s linears differ from torch's by %.2g and are not used", dtype, worst)
                return False
    except (RuntimeError, AttributeError) as error:
        log.warning("packed %s linears are not available: %s", dtype, error)
        return False
    return True


def _weight_and_bias(child: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Exactly the two known classes: a subclass may do more than a product."""
    if type(child) is nn.Linear:
        return child.weight, child.bias
    if type(child) is Conv1D:
        parameters = dict(child.named_parameters())
        return parameters["weight"].t(), parameters.get("bias")
    return None
