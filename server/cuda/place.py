"""From the product of the three projections to queries that can attend, and keys and values that lie in pages.

Dimension key
    T        new tokens of the step
    B        sequences of the step
    N, P     pages, tokens in one
    Hq, H    query heads, key/value heads
    Dk, Dv   width of a key, of a value
    M, R     rows of the tables of rotary factors, rotated pairs
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from server.cuda import place_kernels
from server.cuda.kernels import launch, padded

HEADS = 4
"""Of a tile."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where each new token goes."""

    slots_T: Tensor
    """int64: ``page * P + offset``."""
    rows_T: Tensor
    """int32: the sequence of each new token."""
    failed_B: Tensor
    """int32: set to 1 for a sequence with new keys or values that are not finite. The pages get zeros there."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Rotary positions: place i of a head turns with place i + R. Factors are float32."""

    positions_T: Tensor
    """int64: each new token's row of the tables."""
    cos_MR: Tensor
    sin_MR: Tensor


@dataclass(frozen=True, kw_only=True)
class Normed:
    """RMS norm of each query and key head before it is rotated. Weights are float32, ``[Dk]``."""

    query_weight_D: Tensor
    key_weight_D: Tensor
    eps: float


def place(
    key_THD: Tensor,
    value_THD: Tensor,
    keys_NPHD: Tensor,
    values_NPHD: Tensor,
    places: Places,
    *,
    query_THD: Tensor | None = None,
    out_THD: Tensor | None = None,
    turn: Turn | None = None,
    normed: Normed | None = None,
) -> None:
    """Write keys and values into their pages, normed and rotated; queries, where they are given, into ``out_THD``.

    Places of a head lie side by side. Pages of keys and values have the same strides, and those of ``keys_NPHD`` are
    dense along N and P. Results are those of ``server.native.reference``, up to fused sums and products.
    """
    assert keys_NPHD.stride() == values_NPHD.stride()
    assert keys_NPHD.stride(0) == keys_NPHD.shape[1] * keys_NPHD.stride(1)
    num_tokens, num_kv_heads, key_dim = key_THD.shape
    num_heads = 0 if query_THD is None else query_THD.shape[1]
    query = key_THD if query_THD is None else query_THD
    num_tiles = -(-num_heads // HEADS) + 2 * -(-num_kv_heads // HEADS)
    launch(
        place_kernels.place,
        (num_tokens, num_tiles),
        query,
        key_THD,
        value_THD,
        key_THD if out_THD is None else out_THD,
        keys_NPHD,
        values_NPHD,
        places.slots_T,
        places.rows_T,
        places.slots_T if turn is None else turn.positions_T,
        places.failed_B if turn is None else turn.cos_MR,
        places.failed_B if turn is None else turn.sin_MR,
        places.failed_B if normed is None else normed.query_weight_D,
        places.failed_B if normed is None else normed.key_weight_D,
        places.failed_B,
        0.0 if normed is None else normed.eps,
        *query.stride()[:2],
        *key_THD.stride()[:2],
        *value_THD.stride()[:2],
        *keys_NPHD.stride()[1:3],
        HQ=max(1, num_heads),
        H=num_kv_heads,
        DK=key_dim,
        DV=value_THD.shape[2],
        DKP=padded(key_dim),
        DVP=padded(value_THD.shape[2]),
        R=0 if turn is None else turn.cos_MR.shape[1],
        BH=HEADS,
        HAS_NORM=normed is not None,
        HAS_QUERIES=query_THD is not None,
        num_warps=2,
    )
