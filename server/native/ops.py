"""The small operations between products: a kernel on the CPU or on CUDA where there is one, torch everywhere else.

A kernel on the CPU takes dense bfloat16 or float32 tensors; of them each row's result depends on that row alone.

Dimension key: T tokens, D width of a token's vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from server.cuda import kernels as cuda_kernels
from server.native import kernels, reference
from server.native.kernels import address

_IS_BF16 = {torch.bfloat16: True, torch.float32: False}
"""The dtypes that kernels know."""


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float, residual_TD: Tensor | None = None) -> Tensor:
    """`reference.rms_norm`."""
    if x_TD.is_cuda and cuda_kernels.serve_rows(x_TD.device):
        from server.cuda import rows

        return rows.norm(x_TD, weight_D, None, eps, is_centred=False, residual=residual_TD)
    module = kernels.module()
    if module is None or not _is_dense(x_TD) or (residual_TD is not None and not _is_alike(residual_TD, x_TD)):
        return reference.rms_norm(x_TD, weight_D, eps, residual_TD)
    out_TD = torch.empty_like(x_TD)
    tensors = (x_TD.data_ptr(), weight_D.data_ptr(), address(residual_TD), out_TD.data_ptr())
    module.rms_norm(*tensors, x_TD.numel(), x_TD.size(-1), eps, _IS_BF16[x_TD.dtype])
    return out_TD


def layer_norm(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float) -> Tensor:
    """`reference.layer_norm`."""
    if x_TD.is_cuda and cuda_kernels.serve_rows(x_TD.device):
        from server.cuda import rows

        return rows.norm(x_TD, weight_D, bias_D, eps, is_centred=True)
    module = kernels.module()
    if module is None or not _is_dense(x_TD):
        return reference.layer_norm(x_TD, weight_D, bias_D, eps)
    out_TD = torch.empty_like(x_TD)
    tensors = (x_TD.data_ptr(), weight_D.data_ptr(), address(bias_D), out_TD.data_ptr())
    module.layer_norm(*tensors, x_TD.numel(), x_TD.size(-1), eps, _IS_BF16[x_TD.dtype])
    return out_TD


def add_norm(
    x_TD: Tensor, added_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float, *, is_centred: bool
) -> tuple[Tensor, Tensor]:
    """The sum of the two, and its norm."""
    if x_TD.is_cuda and cuda_kernels.serve_rows(x_TD.device):
        from server.cuda import rows

        return rows.add_norm(x_TD, added_TD, weight_D, bias_D, eps, is_centred=is_centred)
    total_TD = x_TD + added_TD
    if is_centred:
        return total_TD, layer_norm(total_TD, weight_D, bias_D, eps)
    return total_TD, rms_norm(total_TD, weight_D, eps)


def finish(
    product: Tensor,
    bias_N: Tensor | None,
    activation: str | None,
    *,
    is_gated: bool,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """`reference.finish`, rounded to ``dtype``."""
    is_plain = bias_N is None and activation is None and residual is None
    if product.is_cuda and not is_plain and cuda_kernels.serve_rows(product.device):
        from server.cuda import rows

        return rows.finish(product, bias_N, activation, is_gated=is_gated, residual=residual, dtype=dtype)
    return reference.finish(product, bias_N, activation, is_gated=is_gated, residual=residual).to(dtype)


def _is_dense(x: Tensor) -> bool:
    return x.dtype in _IS_BF16 and x.is_cpu and x.is_contiguous() and x.numel() > 0


def _is_alike(x: Tensor, other: Tensor) -> bool:
    return x.dtype == other.dtype and x.shape == other.shape and x.is_contiguous()
