"""Norms, and what follows a product, each in one launch: ``server.native.reference`` says what they compute.

Dimension key: D width of a row, N outputs of a product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from server.cuda import rows_kernels
from server.cuda.kernels import launch, padded

TILE = 1024
"""Places of a tile of `finish`."""


def norm(
    x: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float, *, is_centred: bool, residual: Tensor | None = None
) -> Tensor:
    """RMS norm of rows ``[..., D]``, or layer norm where ``is_centred``; the residual is added last."""
    return _norm(x, None, None, weight_D, bias_D, eps, is_centred=is_centred, residual=residual)


def add_norm(
    x: Tensor, added: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float, *, is_centred: bool
) -> tuple[Tensor, Tensor]:
    """``x + added``, rounded, and the norm of that."""
    total = torch.empty_like(x, memory_format=torch.contiguous_format)
    return total, _norm(x, added, total, weight_D, bias_D, eps, is_centred=is_centred, residual=None)


def _norm(
    x: Tensor,
    added: Tensor | None,
    total: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None,
    eps: float,
    *,
    is_centred: bool,
    residual: Tensor | None,
) -> Tensor:
    x, width = x.contiguous(), x.shape[-1]
    out = torch.empty_like(x)
    block = padded(width)
    launch(
        rows_kernels.norm,
        (x.numel() // width,),
        x,
        x if added is None else added.contiguous(),
        x if total is None else total,
        weight_D,
        weight_D if bias_D is None else bias_D,
        x if residual is None else residual.contiguous(),
        out,
        eps,
        D=width,
        BLOCK=block,
        IS_CENTRED=is_centred,
        HAS_ADDED=added is not None,
        HAS_BIAS=bias_D is not None,
        HAS_RESIDUAL=residual is not None,
        num_warps=max(1, min(16, block // 512)),
    )
    return out


def finish(
    product: Tensor,
    bias_N: Tensor | None,
    activation: str | None,
    *,
    is_gated: bool,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Bias, activation, gate, residual, in this order; the result is rounded once, to ``dtype``."""
    product = product.contiguous()
    num_places = product.shape[-1] // (2 if is_gated else 1)
    out = torch.empty((*product.shape[:-1], num_places), dtype=dtype, device=product.device)
    block = min(TILE, padded(num_places))
    launch(
        rows_kernels.finish,
        (product.numel() // product.shape[-1], -(-num_places // block)),
        product,
        product if bias_N is None else bias_N,
        product if residual is None else residual.contiguous(),
        out,
        N=num_places,
        BLOCK=block,
        ACTIVATION=activation or "",
        IS_GATED=is_gated,
        HAS_BIAS=bias_N is not None,
        HAS_RESIDUAL=residual is not None,
        num_warps=4 if block == TILE else 1,
    )
    return out
