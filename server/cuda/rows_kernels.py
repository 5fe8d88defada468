"""What follows and precedes products, as it runs on the device: each row of a tensor by itself, in float32.

Dimension key: D width of a row, N outputs of a product, BLOCK places of a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm(
    x_ptr, added_ptr, sum_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr, eps,
    D: tl.constexpr, BLOCK: tl.constexpr, IS_CENTRED: tl.constexpr, HAS_ADDED: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Grid [rows]. Where there is something to add to ``x``, the sum is written too, and normed as it was rounded."""
    row = tl.program_id(0).to(tl.int64) * D
    d = tl.arange(0, BLOCK)
    mask = d < D
    x = tl.load(x_ptr + row + d, mask=mask, other=0.0).to(tl.float32)
    if HAS_ADDED:
        x += tl.load(added_ptr + row + d, mask=mask, other=0.0).to(tl.float32)
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row + d, rounded, mask=mask)
        x = rounded.to(tl.float32)
    if IS_CENTRED:
        x = tl.where(mask, x - tl.sum(x, 0) / D, 0.0)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / D + eps) * tl.load(weight_ptr + d, mask=mask, other=0.0)
    if HAS_BIAS:
        x += tl.load(bias_ptr + d, mask=mask, other=0.0)
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + row + d, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row + d, x.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        x = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # tanh(u) is 2 / (1 + exp(-2 u)) - 1.
        x = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif ACTIVATION == "relu":
        x = tl.where(x > 0, x, 0.0 * x)
    return x


@triton.jit
def finish(
    x_ptr, bias_ptr, residual_ptr, out_ptr,
    N: tl.constexpr, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr, IS_GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Grid [rows, tiles]. ``N`` counts the places of a result; where it is gated, a row of ``x`` has twice as many."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    start = row * (2 * N if IS_GATED else N)
    x = tl.load(x_ptr + start + n, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias_ptr + n, mask=mask, other=0.0)
    x = _activated(x, ACTIVATION)
    if IS_GATED:
        up = tl.load(x_ptr + start + N + n, mask=mask, other=0.0).to(tl.float32)
        if HAS_BIAS:
            up += tl.load(bias_ptr + N + n, mask=mask, other=0.0)
        x = x * up
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + row * N + n, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * N + n, x.to(out_ptr.dtype.element_ty), mask=mask)
