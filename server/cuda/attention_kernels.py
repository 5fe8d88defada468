"""Attention over pages, as it runs on the device.

Scores are in units of log 2, so that exp2 takes them as they are. Widths that are no power of two are padded with
masked places. ``failed_ptr`` marks sequences with new keys or values that were not finite: their results are NaN.

Dimension key
    B        sequences
    H, G     key/value heads, query heads of each
    DK, DV   width of a key, of a value; DKP and DVP are those of a tile
    BM, BN   rows of a tile of queries, tokens of a tile of keys
"""

from __future__ import annotations

import triton
import triton.language as tl

# What changes from step to step, and must not be compiled for: numbers that are 1 or divide by 16, and addresses that
# are aligned, which parts of one table are by chance.
VARIED = {
    "do_not_specialize": ["window", "skipped", "table_width", "num_splits"],
    "do_not_specialize_on_alignment": ["table_ptr", "start_ptr", "length_ptr", "order_ptr", "failed_ptr"],
}


@triton.jit
def _scores(q, k, scale_in, scale_out, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr):
    scores = tl.dot(q, k, input_precision=PRECISION) * scale_in
    if HAS_SOFTCAP:
        # The hyperbolic tangent: ``scale_in`` holds its factor 2.
        scores = scale_out * (1.0 - 2.0 / (tl.exp2(scores) + 1.0))
    return scores


@triton.jit
def _tile(
    q, k_ptr, v_ptr, table_ptr, first, stop, low, high, scale_in, scale_out, stride_n, stride_p, most, total, sums,
    DK: tl.constexpr, DV: tl.constexpr, DKP: tl.constexpr, DVP: tl.constexpr, PAGE: tl.constexpr, BN: tl.constexpr,
    IS_MASKED: tl.constexpr, HAS_LOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend to the keys from ``first`` on. Masked, a row sees those in [low, high) that are below ``stop``."""
    place = first + tl.arange(0, BN)
    dk = tl.arange(0, DKP)
    dv = tl.arange(0, DVP)
    if IS_MASKED:
        is_key = place < stop
        page = tl.load(table_ptr + place // PAGE, mask=is_key, other=0)
        key_mask = is_key[None, :] & (dk < DK)[:, None]
        value_mask = is_key[:, None] & (dv < DV)[None, :]
    else:
        page = tl.load(table_ptr + place // PAGE)
        key_mask = (dk < DK)[:, None] & (place >= 0)[None, :]
        value_mask = (dv < DV)[None, :] & (place >= 0)[:, None]
    offset = page.to(tl.int64) * stride_n + (place % PAGE) * stride_p
    if IS_MASKED or DK != DKP:
        k = tl.load(k_ptr + offset[None, :] + dk[:, None], mask=key_mask, other=0.0)
    else:
        k = tl.load(k_ptr + offset[None, :] + dk[:, None])
    scores = _scores(q, k, scale_in, scale_out, HAS_SOFTCAP, PRECISION)
    if IS_MASKED:
        is_seen = (place[None, :] < high[:, None]) & is_key[None, :]
        if HAS_LOW:
            is_seen = is_seen & (place[None, :] >= low[:, None])
        scores = tl.where(is_seen, scores, float("-inf"))
    new_most = tl.maximum(most, tl.max(scores, 1))
    # A row that has seen nothing yet: all its weights are 0.
    base = tl.where(new_most == float("-inf"), 0.0, new_most) if IS_MASKED else new_most
    shrink = tl.exp2(most - base)
    weights = tl.exp2(scores - base[:, None])
    total = total * shrink + tl.sum(weights, 1)
    if IS_MASKED or DV != DVP:
        v = tl.load(v_ptr + offset[:, None] + dv[None, :], mask=value_mask, other=0.0)
    else:
        v = tl.load(v_ptr + offset[:, None] + dv[None, :])
    sums = tl.dot(weights.to(v.dtype), v, sums * shrink[:, None], input_precision=PRECISION)
    return new_most, total, sums


@triton.jit
def _span(length, window, SPLIT: tl.constexpr, MOST_SPLITS: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """Where a single new token starts to look, and how many tokens each of its splits takes.

    Both follow from the sequence alone: a result does not depend on other sequences.
    """
    first = tl.maximum(0, length - window) if HAS_WINDOW else 0
    size = tl.cdiv(length - first, SPLIT * MOST_SPLITS) * SPLIT
    return first, size


@triton.jit(**VARIED)
def decode(
    q_ptr, k_ptr, v_ptr, table_ptr, start_ptr, length_ptr, order_ptr, failed_ptr, sink_ptr, out_ptr, part_ptr, log_ptr,
    scale_in, scale_out, window, skipped, stride_qt, stride_qh, stride_n, stride_p, stride_h, table_width,
    H: tl.constexpr, G: tl.constexpr, GP: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, DKP: tl.constexpr,
    DVP: tl.constexpr, PAGE: tl.constexpr, BN: tl.constexpr, SPLIT: tl.constexpr, MOST_SPLITS: tl.constexpr,
    IS_WHOLE: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid [splits, H, B]: one split of one sequence's only new token, for all query heads of a key/value head.

    ``part`` is [B, H * G, splits, DV] and ``log`` [B, H * G, splits], float32: what `merge` reads. Whole, ``out`` is
    written at once.
    """
    split = tl.program_id(0)
    h = tl.program_id(1)
    row = tl.program_id(2)
    b = tl.load(order_ptr + skipped + row)
    length = tl.load(length_ptr + b)
    first, size = _span(length, window, SPLIT, MOST_SPLITS, HAS_WINDOW)
    begin = first + split * size
    if begin < length:
        stop = tl.minimum(length, begin + size)
        t = tl.load(start_ptr + b)
        g = tl.arange(0, GP)
        dk = tl.arange(0, DKP)
        dv = tl.arange(0, DVP)
        is_head = g < G
        head = h * G + g
        q = tl.load(
            q_ptr + t.to(tl.int64) * stride_qt + head[:, None] * stride_qh + dk[None, :],
            mask=is_head[:, None] & (dk < DK)[None, :], other=0.0,
        )  # fmt: skip
        most = tl.full([GP], float("-inf"), tl.float32)
        total = tl.zeros([GP], tl.float32)
        if HAS_SINKS:
            if split == 0:
                most = tl.load(sink_ptr + head, mask=is_head, other=0.0).to(tl.float32) * 1.4426950408889634
                total = total + 1.0
        sums = tl.zeros([GP, DVP], tl.float32)
        low = tl.full([GP], 0, tl.int32) + begin
        high = tl.full([GP], 0, tl.int32) + stop
        for j in range(begin, stop, BN):
            most, total, sums = _tile(
                q, k_ptr + h * stride_h, v_ptr + h * stride_h, table_ptr + b.to(tl.int64) * table_width, j, stop, low,
                high, scale_in, scale_out, stride_n, stride_p, most, total, sums,
                DK, DV, DKP, DVP, PAGE, BN, True, False, HAS_SOFTCAP, PRECISION,
            )  # fmt: skip
        result = sums / total[:, None]
        mask = is_head[:, None] & (dv < DV)[None, :]
        if IS_WHOLE:
            if tl.load(failed_ptr + b) != 0:
                result = result + float("nan")
            out = out_ptr + t.to(tl.int64) * (H * G * DV) + head[:, None] * DV + dv[None, :]
            tl.store(out, result.to(out_ptr.dtype.element_ty), mask=mask)
        else:
            slot = (row.to(tl.int64) * (H * G) + head) * tl.num_programs(0) + split
            tl.store(part_ptr + slot[:, None] * DV + dv[None, :], result, mask=mask)
            tl.store(log_ptr + slot, most + tl.log2(total), mask=is_head)


@triton.jit(**VARIED)
def merge(
    part_ptr, log_ptr, start_ptr, length_ptr, order_ptr, failed_ptr, out_ptr, window, skipped, num_splits,
    DV: tl.constexpr, DVP: tl.constexpr, CHUNK: tl.constexpr, SPLIT: tl.constexpr, MOST_SPLITS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """Grid [H * G, B]: the splits of one query head, in their order, chunk by chunk."""
    head = tl.program_id(0)
    row = tl.program_id(1)
    b = tl.load(order_ptr + skipped + row)
    length = tl.load(length_ptr + b)
    first, size = _span(length, window, SPLIT, MOST_SPLITS, HAS_WINDOW)
    num_used = tl.cdiv(length - first, size)
    s = tl.arange(0, CHUNK)
    dv = tl.arange(0, DVP)
    base = (row.to(tl.int64) * tl.num_programs(0) + head) * num_splits
    most = tl.full([CHUNK], float("-inf"), tl.float32)
    for j in range(0, num_used, CHUNK):
        most = tl.maximum(most, tl.load(log_ptr + base + j + s, mask=j + s < num_used, other=float("-inf")))
    highest = tl.max(most, 0)
    total = 0.0
    sums = tl.zeros([DVP], tl.float32)
    for j in range(0, num_used, CHUNK):
        is_used = j + s < num_used
        weights = tl.exp2(tl.load(log_ptr + base + j + s, mask=is_used, other=float("-inf")) - highest)
        part = tl.load(
            part_ptr + (base + j + s)[:, None] * DV + dv[None, :],
            mask=is_used[:, None] & (dv < DV)[None, :], other=0.0,
        )  # fmt: skip
        total += tl.sum(weights, 0)
        sums += tl.sum(part * weights[:, None], 0)
    result = sums / total
    if tl.load(failed_ptr + b) != 0:
        result = result + float("nan")
    t = tl.load(start_ptr + b)
    out = out_ptr + (t.to(tl.int64) * tl.num_programs(0) + head) * DV + dv
    tl.store(out, result.to(out_ptr.dtype.element_ty), mask=dv < DV)


@triton.jit(**VARIED)
def prefill(
    q_ptr, k_ptr, v_ptr, table_ptr, start_ptr, length_ptr, order_ptr, failed_ptr, sink_ptr, out_ptr,
    scale_in, scale_out, window, stride_qt, stride_qh, stride_n, stride_p, stride_h, table_width,
    H: tl.constexpr, G: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, DKP: tl.constexpr, DVP: tl.constexpr,
    PAGE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid [tiles, H, B]: a tile's rows are the query heads of a key/value head, token by token.

    The new tokens' keys and values are in the pages already. The last tile is the longest and starts first.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    h = tl.program_id(1)
    b = tl.load(order_ptr + tl.program_id(2))
    start = tl.load(start_ptr + b)
    num_new = tl.load(start_ptr + b + 1) - start
    if tile * BM < num_new * G:
        num_old = tl.load(length_ptr + b) - num_new
        m = tile * BM + tl.arange(0, BM)
        token = m // G
        head = h * G + m % G
        dk = tl.arange(0, DKP)
        dv = tl.arange(0, DVP)
        is_row = token < num_new
        q = tl.load(
            q_ptr + (start + token).to(tl.int64)[:, None] * stride_qt + head[:, None] * stride_qh + dk[None, :],
            mask=is_row[:, None] & (dk < DK)[None, :], other=0.0,
        )  # fmt: skip
        most = tl.full([BM], float("-inf"), tl.float32)
        total = tl.zeros([BM], tl.float32)
        if HAS_SINKS:
            most = tl.load(sink_ptr + head).to(tl.float32) * 1.4426950408889634
            total = total + 1.0
        sums = tl.zeros([BM, DVP], tl.float32)
        # Of the tile's first token and of its last.
        first_position = num_old + tile * BM // G
        last_position = num_old + tl.minimum((tile * BM + BM - 1) // G, num_new - 1)
        # Rows behind the last token see what that one sees.
        high = num_old + tl.minimum(token, num_new - 1) + 1
        low = high - window
        stop = last_position + 1
        k_base = k_ptr + h * stride_h
        v_base = v_ptr + h * stride_h
        table = table_ptr + b.to(tl.int64) * table_width
        if HAS_WINDOW:
            begin = tl.maximum(0, first_position + 1 - window) // BN * BN
        else:
            # Keys that all rows see.
            begin = (first_position + 1) // BN * BN
            for j in range(0, begin, BN):
                most, total, sums = _tile(
                    q, k_base, v_base, table, j, stop, low, high, scale_in, scale_out, stride_n, stride_p, most, total,
                    sums, DK, DV, DKP, DVP, PAGE, BN, False, False, HAS_SOFTCAP, PRECISION,
                )  # fmt: skip
        for j in range(begin, stop, BN):
            most, total, sums = _tile(
                q, k_base, v_base, table, j, stop, low, high, scale_in, scale_out, stride_n, stride_p, most, total,
                sums, DK, DV, DKP, DVP, PAGE, BN, True, HAS_WINDOW, HAS_SOFTCAP, PRECISION,
            )  # fmt: skip
        result = sums / total[:, None]
        if tl.load(failed_ptr + b) != 0:
            result = result + float("nan")
        out = out_ptr + (start + token).to(tl.int64)[:, None] * (H * G * DV) + head[:, None] * DV + dv[None, :]
        tl.store(out, result.to(out_ptr.dtype.element_ty), mask=is_row[:, None] & (dv < DV)[None, :])
