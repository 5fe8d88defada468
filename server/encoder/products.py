"""The products of an encoder's layers in fewer bits than the rest of it, one linear layer at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.encoder.fused import MakeProduct, Product
from server.native.linear import Linear, Quantize
from server.native.reference import ACTIVATIONS


def reduce_linears(module: nn.Module, dtype: torch.dtype, quantize: Quantize) -> None:
    """Replace the linear layers of ``module``: inputs are rounded, results have the input's dtype."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            # Exactly this class: a subclass may do more than a product.
            if type(child) is nn.Linear and child.weight.numel():
                setattr(parent, name, Linear(child.weight.detach().to(dtype), child.bias, quantize=quantize))


class FloatOut(nn.Module):
    """A product whose results are float32."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x, out_float=True)

    # As in `Linear`: without a module's hooks.
    __call__ = forward


def packed_product(dtype: torch.dtype, quantize: Quantize) -> MakeProduct:
    """Products of the fused layers, packed; their inputs have this dtype."""

    def make(weight_NK: Tensor, bias_N: Tensor, *, activation: str | None = None, is_summed: bool = False) -> Product:
        linear = Linear(weight_NK.detach().to(dtype), bias_N, activation=activation, quantize=quantize)
        # Only our kernels have it in float32 anyway; for the others it would be a step more and gain nothing.
        return FloatOut(linear) if is_summed and linear.is_row_invariant else linear

    return make


def plain_product(
    weight_NK: Tensor,
    bias_N: Tensor,
    *,
    activation: str | None = None,
    is_summed: bool = False,  # noqa: ARG001
) -> Product:
    """In float32 and by torch alone: for proofs."""
    weight_NK, bias_N = weight_NK.detach().float(), bias_N.detach().float()

    def product(x: Tensor) -> Tensor:
        out = functional.linear(x, weight_NK, bias_N)
        return out if activation is None else ACTIVATIONS[activation](out)

    return product
