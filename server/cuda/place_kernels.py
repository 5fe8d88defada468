"""Between the projections and attention, as it runs on the device: norms of heads, rotation, writing to the pages.

Dimension key: HQ, H query and key/value heads, DK, DV width of a key and of a value, R rotated pairs, BH heads a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Parts of one table: whether they are aligned changes from step to step.
VARIED = {"do_not_specialize_on_alignment": ["slot_ptr", "row_ptr", "position_ptr", "failed_ptr"]}


@triton.jit
def _turned(
    x_ptr, stride_h, first_head, cos_ptr, sin_ptr, weight_ptr, eps, num_heads,
    D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, BH: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """Normed and rotated heads of one token ``[BH, DP]`` in the input's type: each step rounds as in the reference."""
    head = first_head + tl.arange(0, BH)
    d = tl.arange(0, DP)
    mask = (head < num_heads)[:, None] & (d < D)[None, :]
    row = x_ptr + head[:, None] * stride_h
    x = tl.load(row + d[None, :], mask=mask, other=0.0)
    wide = x.to(tl.float32)
    inverse = tl.full([BH], 1.0, tl.float32)
    if HAS_NORM:
        inverse = tl.rsqrt(tl.sum(wide * wide, 1) / D + eps)
        weight = tl.load(weight_ptr + d, mask=d < D, other=0.0)
        wide = (wide * inverse[:, None] * weight[None, :]).to(x.dtype).to(tl.float32)
    if R > 0:
        # Place d turns with place d + R or d - R.
        is_turned = d < 2 * R
        is_first = d < R
        partner = tl.where(is_turned, tl.where(is_first, d + R, d - R), d)
        pair = tl.where(is_first, d, d - R)
        cos = tl.load(cos_ptr + pair, mask=is_turned, other=1.0)
        sin = tl.load(sin_ptr + pair, mask=is_turned, other=0.0)
        other = tl.load(row + partner[None, :], mask=mask, other=0.0).to(tl.float32)
        if HAS_NORM:
            weight = tl.load(weight_ptr + partner, mask=d < D, other=0.0)
            other = (other * inverse[:, None] * weight[None, :]).to(x.dtype).to(tl.float32)
        sin = tl.where(is_first, -sin, sin)
        turned = wide * cos[None, :] + other * sin[None, :]
        wide = tl.where(is_turned[None, :], turned, wide)
    return wide.to(x.dtype)


@triton.jit
def _write(
    pool_ptr, slot, x, first_head, failed_ptr, stride_p, stride_h, num_heads,
    D: tl.constexpr, DP: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Write ``x`` ``[BH, DP]`` to a page. A value that is not finite becomes 0 and marks its sequence as failed."""
    head = first_head + tl.arange(0, BH)
    d = tl.arange(0, DP)
    mask = (head < num_heads)[:, None] & (d < D)[None, :]
    is_finite = tl.abs(x.to(tl.float32)) < float("inf")
    if tl.sum(tl.sum(tl.where(is_finite, 0, 1), 1), 0) > 0:
        tl.store(failed_ptr, 1)
    place = pool_ptr + slot * stride_p + head[:, None] * stride_h + d[None, :]
    tl.store(place, tl.where(is_finite, x, 0.0).to(pool_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _turn_queries(
    x_ptr, stride_xh, first_head, cos_ptr, sin_ptr, weight_ptr, eps, out_ptr,
    HQ: tl.constexpr, DK: tl.constexpr, DKP: tl.constexpr, R: tl.constexpr, BH: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    x = _turned(x_ptr, stride_xh, first_head, cos_ptr, sin_ptr, weight_ptr, eps, HQ, DK, DKP, R, BH, HAS_NORM)
    head = first_head + tl.arange(0, BH)
    d = tl.arange(0, DKP)
    tl.store(out_ptr + head[:, None] * DK + d[None, :], x, mask=(head < HQ)[:, None] & (d < DK)[None, :])


@triton.jit
def _write_keys(
    x_ptr, stride_xh, first_head, cos_ptr, sin_ptr, weight_ptr, eps, pool_ptr, slot, failed_ptr, stride_p, stride_h,
    H: tl.constexpr, DK: tl.constexpr, DKP: tl.constexpr, R: tl.constexpr, BH: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    x = _turned(x_ptr, stride_xh, first_head, cos_ptr, sin_ptr, weight_ptr, eps, H, DK, DKP, R, BH, HAS_NORM)
    _write(pool_ptr, slot, x, first_head, failed_ptr, stride_p, stride_h, H, DK, DKP, BH)


@triton.jit
def _write_values(
    x_ptr, stride_xh, first_head, pool_ptr, slot, failed_ptr, stride_p, stride_h,
    H: tl.constexpr, DV: tl.constexpr, DVP: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    head = first_head + tl.arange(0, BH)
    d = tl.arange(0, DVP)
    mask = (head < H)[:, None] & (d < DV)[None, :]
    x = tl.load(x_ptr + head[:, None] * stride_xh + d[None, :], mask=mask, other=0.0)
    _write(pool_ptr, slot, x, first_head, failed_ptr, stride_p, stride_h, H, DV, DVP, BH)


@triton.jit(**VARIED)
def place(
    q_ptr, k_ptr, v_ptr, out_ptr, key_pool_ptr, value_pool_ptr, slot_ptr, row_ptr, position_ptr, cos_ptr, sin_ptr,
    query_weight_ptr, key_weight_ptr, failed_ptr, eps,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_p, stride_h,
    HQ: tl.constexpr, H: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, DKP: tl.constexpr, DVP: tl.constexpr,
    R: tl.constexpr, BH: tl.constexpr, HAS_NORM: tl.constexpr, HAS_QUERIES: tl.constexpr,
):  # fmt: skip
    """Grid [tokens, tiles of heads]: those of queries, where there are any, then of keys, then of values."""
    t = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    NQ: tl.constexpr = (HQ + BH - 1) // BH if HAS_QUERIES else 0
    NK: tl.constexpr = (H + BH - 1) // BH
    cos = cos_ptr
    sin = sin_ptr
    if R > 0:
        position = tl.load(position_ptr + t)
        cos = cos_ptr + position * R
        sin = sin_ptr + position * R
    # Each in a function of its own: a name has one type in all branches.
    if tile < NQ:
        if HAS_QUERIES:
            _turn_queries(
                q_ptr + t * stride_qt, stride_qh, tile * BH, cos, sin, query_weight_ptr, eps, out_ptr + t * (HQ * DK),
                HQ, DK, DKP, R, BH, HAS_NORM,
            )  # fmt: skip
    else:
        slot = tl.load(slot_ptr + t)
        failed = failed_ptr + tl.load(row_ptr + t)
        if tile < NQ + NK:
            _write_keys(
                k_ptr + t * stride_kt, stride_kh, (tile - NQ) * BH, cos, sin, key_weight_ptr, eps, key_pool_ptr, slot,
                failed, stride_p, stride_h, H, DK, DKP, R, BH, HAS_NORM,
            )  # fmt: skip
        else:
            _write_values(
                v_ptr + t * stride_vt, stride_vh, (tile - NQ - NK) * BH, value_pool_ptr, slot, failed, stride_p,
                stride_h, H, DV, DVP, BH,
            )  # fmt: skip
