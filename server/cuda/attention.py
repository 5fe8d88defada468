"""Causal attention of new tokens over the pages that hold their sequences' keys and values.

A sequence with one new token reads its keys in splits, which are merged in their order; how it is split follows from
its own length, so that other sequences change nothing. Sequences with several new tokens are computed in tiles.

Dimension key
    T        new tokens of the step
    B        sequences of the step
    N, P     pages, tokens in one
    Hq, H    query heads, key/value heads
    Dk, Dv   width of a key, of a value
    W        width of the page tables
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from server.cuda import attention_kernels
from server.cuda.kernels import launch, padded

LOG2_E = math.log2(math.e)

SPLIT = 256
"""Tokens of a split, or a multiple in sequences with more than `MOST_SPLITS` of them."""
MOST_SPLITS = 64

MERGED = 8
"""Splits that are merged at a time."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Who attends to what. Tensors are int32 and on the device."""

    tables_BW: Tensor
    """The pages of each sequence. What lies behind its last one is never looked at."""
    starts_B1: Tensor
    """Where each sequence's new tokens start in T, and T."""
    lengths_B: Tensor
    """Tokens of each sequence, with the new ones."""
    order_B: Tensor
    """The sequences, those with several new tokens first."""
    failed_B: Tensor
    """Not 0 where a new key or value was not finite: the sequence's results are NaN."""
    num_chunks: int
    """Sequences with several new tokens."""
    most_new: int
    """At least the new tokens of any sequence."""
    most_tokens: int
    """At least the tokens of any sequence."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How scores are made, and who sees whom."""

    scale: float
    window: int | None = None
    softcap: float | None = None

    @property
    def scales(self) -> tuple[float, float]:
        """Before and after the softcap, in units of log 2."""
        if self.softcap is None:
            return self.scale * LOG2_E, 1.0
        return 2.0 * self.scale / self.softcap * LOG2_E, self.softcap * LOG2_E


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a kernel is cut for the shape of heads and the type."""

    rows: int
    """Of a tile of queries."""
    keys: int
    """Of a tile of keys."""
    num_warps: int
    num_stages: int


def decode_tiling(key_dim: int, value_dim: int, group: int, itemsize: int) -> Tiling:
    width = max(padded(key_dim), padded(value_dim))
    # In float32 there are no tensor cores, and the products take more registers.
    tile_bytes = 32 * 1024 if itemsize == 2 else 16 * 1024
    keys = max(16, min(128, tile_bytes // (width * itemsize)))
    return Tiling(rows=padded(group), keys=keys, num_warps=4, num_stages=3 if itemsize == 2 else 2)


def prefill_tiling(key_dim: int, value_dim: int, group: int, itemsize: int) -> Tiling:
    width = max(padded(key_dim), padded(value_dim))
    if itemsize == 4:
        # Products in float32 without tensor cores: small tiles that stay in registers.
        return Tiling(rows=max(32, padded(group)), keys=16 if width > 128 else 32, num_warps=4, num_stages=1)
    if width > 128:
        return Tiling(rows=max(64, padded(group)), keys=32, num_warps=8, num_stages=2)
    return Tiling(rows=max(128, padded(group)), keys=64, num_warps=8, num_stages=2)


def attend(
    query_THD: Tensor,
    keys_NPHD: Tensor,
    values_NPHD: Tensor,
    step: Step,
    rule: Rule,
    out_THD: Tensor,
    *,
    sinks: Tensor | None = None,
) -> None:
    """Fill ``out_THD`` ``[T, Hq, Dv]``, which is dense.

    Places of a query, key or value lie side by side. Pages of keys and values have the same strides. ``sinks`` is
    ``[Hq]``: one more place for each query head to look at, with this score and without a value.
    """
    if step.num_chunks:
        _prefill(query_THD, keys_NPHD, values_NPHD, step, rule, out_THD, sinks)
    if step.num_chunks < len(step.lengths_B):
        _decode(query_THD, keys_NPHD, values_NPHD, step, rule, out_THD, sinks)


def num_splits(step: Step, rule: Rule) -> int:
    """Of the longest sequence, at most."""
    most = step.most_tokens if rule.window is None else min(step.most_tokens, rule.window)
    return min(MOST_SPLITS, -(-most // SPLIT))


def _prefill(
    query_THD: Tensor,
    keys_NPHD: Tensor,
    values_NPHD: Tensor,
    step: Step,
    rule: Rule,
    out_THD: Tensor,
    sinks: Tensor | None,
) -> None:
    shape = _shape(query_THD, keys_NPHD, values_NPHD, rule, sinks)
    tiling = prefill_tiling(shape["DK"], shape["DV"], shape["G"], query_THD.itemsize)
    launch(
        attention_kernels.prefill,
        (-(-step.most_new * shape["G"] // tiling.rows), shape["H"], step.num_chunks),
        *_tensors(query_THD, keys_NPHD, values_NPHD, step, sinks, out_THD),
        *rule.scales,
        rule.window or 0,
        *_strides(query_THD, keys_NPHD, step),
        **shape,
        BM=tiling.rows,
        BN=tiling.keys,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )


def _decode(
    query_THD: Tensor,
    keys_NPHD: Tensor,
    values_NPHD: Tensor,
    step: Step,
    rule: Rule,
    out_THD: Tensor,
    sinks: Tensor | None,
) -> None:
    shape = _shape(query_THD, keys_NPHD, values_NPHD, rule, sinks)
    tiling = decode_tiling(shape["DK"], shape["DV"], shape["G"], query_THD.itemsize)
    num_rows, num_heads, splits = len(step.lengths_B) - step.num_chunks, query_THD.shape[1], num_splits(step, rule)
    is_whole = splits == 1
    part = out_THD if is_whole else _floats(out_THD, num_rows, num_heads, splits, shape["DV"])
    logs = out_THD if is_whole else _floats(out_THD, num_rows, num_heads, splits)
    cut = {"SPLIT": SPLIT, "MOST_SPLITS": MOST_SPLITS}
    launch(
        attention_kernels.decode,
        (splits, shape["H"], num_rows),
        *_tensors(query_THD, keys_NPHD, values_NPHD, step, sinks, out_THD),
        part,
        logs,
        *rule.scales,
        rule.window or 0,
        step.num_chunks,
        *_strides(query_THD, keys_NPHD, step),
        **shape,
        **cut,
        GP=tiling.rows,
        BN=tiling.keys,
        IS_WHOLE=is_whole,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    if is_whole:
        return
    launch(
        attention_kernels.merge,
        (num_heads, num_rows),
        part,
        logs,
        step.starts_B1,
        step.lengths_B,
        step.order_B,
        step.failed_B,
        out_THD,
        rule.window or 0,
        step.num_chunks,
        splits,
        **cut,
        DV=shape["DV"],
        DVP=shape["DVP"],
        CHUNK=MERGED,
        HAS_WINDOW=shape["HAS_WINDOW"],
        num_warps=2,
    )


def _tensors(
    query_THD: Tensor, keys_NPHD: Tensor, values_NPHD: Tensor, step: Step, sinks: Tensor | None, out_THD: Tensor
) -> tuple[Tensor, ...]:
    """The first arguments of both kernels."""
    whom = (step.tables_BW, step.starts_B1, step.lengths_B, step.order_B, step.failed_B)
    return query_THD, keys_NPHD, values_NPHD, *whom, step.failed_B if sinks is None else sinks, out_THD


def _strides(query_THD: Tensor, keys_NPHD: Tensor, step: Step) -> tuple[int, ...]:
    """The last arguments of both kernels."""
    return *query_THD.stride()[:2], *keys_NPHD.stride()[:3], step.tables_BW.shape[1]


def _shape(
    query_THD: Tensor, keys_NPHD: Tensor, values_NPHD: Tensor, rule: Rule, sinks: Tensor | None
) -> dict[str, Any]:
    """What both kernels are compiled for."""
    assert keys_NPHD.stride() == values_NPHD.stride()
    return _constants(
        query_THD.shape[1],
        *keys_NPHD.shape[1:],
        values_NPHD.shape[3],
        (rule.window is not None, rule.softcap is not None, sinks is not None),
        "ieee" if query_THD.dtype is torch.float32 else "tf32",
    )


@cache
def _constants(
    num_heads: int,
    page: int,
    num_kv_heads: int,
    key_dim: int,
    value_dim: int,
    has: tuple[bool, bool, bool],
    precision: str,
) -> dict[str, Any]:
    has_window, has_softcap, has_sinks = has
    return {
        "H": num_kv_heads,
        "G": num_heads // num_kv_heads,
        "DK": key_dim,
        "DV": value_dim,
        "DKP": padded(key_dim),
        "DVP": padded(value_dim),
        "PAGE": page,
        "HAS_WINDOW": has_window,
        "HAS_SOFTCAP": has_softcap,
        "HAS_SINKS": has_sinks,
        "PRECISION": precision,
    }


def _floats(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)
