"""Attention of texts that lie end to end: each token sees the tokens of its own text, and no mask is ever built.

Dimension key
    T  tokens of all texts
    H  heads; keys and values may have fewer
    D  width of a head
    X  values of a token
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from server.modules.attention import DistanceBias
from server.modules.layout import Attention
from server.modules.operations import Attend
from server.modules.texts import Queries, Texts
from server.native import kernels

KERNEL_DTYPES = (torch.float32, torch.bfloat16)
KERNEL_MAX_HEAD_DIM = 256


def attending_queries(texts: Texts, queries: Queries, whole_SX: Tensor) -> Attend:
    """Answers the attention of a layer that runs for some tokens, with ``[S, X]`` of the projections of all tokens."""

    def answer(_layer: int, attention: Attention, qkv_TX: Tensor) -> Tensor:
        spec = attention.spec
        q_THD, _, _ = spec.split(qkv_TX)
        _, k_SHD, v_SHD = spec.split(whole_SX)
        return _attend_queries(q_THD, k_SHD, v_SHD, texts, queries, spec.scaling, spec.bias).flatten(1)

    return answer


def _attend_queries(
    q_THD: Tensor,
    k_SHD: Tensor,
    v_SHD: Tensor,
    texts: Texts,
    queries: Queries,
    scaling: float,
    bias: DistanceBias | None,
) -> Tensor:
    first, stop = queries.first_text, queries.first_text + len(queries)
    k_CHD, v_CHD = (states[texts.starts[first] : texts.starts[stop]] for states in (k_SHD, v_SHD))
    if _suits_kernel(q_THD, k_CHD, v_CHD):
        key_starts = queries.key_starts - queries.key_starts[0]
        starts, key_starts, places = map(torch.from_numpy, (queries.starts, key_starts, queries.places))
        return _by_kernel(q_THD, k_CHD, v_CHD, starts, key_starts, places, scaling, None, bias)
    lengths = texts.lengths[first:stop]
    parts = zip(
        *(torch.split(*each) for each in ((q_THD, queries.lengths), (k_CHD, lengths), (v_CHD, lengths))),
        queries.places.tolist(),
        strict=True,
    )
    return torch.cat([_attend_one(q, k, v, scaling, None, bias, place) for q, k, v, place in parts])


def attending(texts: Texts, *, only_wanted: bool = False) -> Attend:
    """Answers the attention of layers that run over ``texts``; with ``only_wanted`` that of the tokens that go on."""

    def answer(_layer: int, attention: Attention, qkv_TX: Tensor) -> Tensor:
        spec = attention.spec
        q_THD, k_THD, v_THD = spec.split(qkv_TX)
        if only_wanted:
            q_THD = q_THD[texts.wanted_places]
        return attend(
            q_THD, k_THD, v_THD, texts, scaling=spec.scaling, bias=spec.bias, only_wanted=only_wanted
        ).flatten(1)

    return answer


def attend(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    texts: Texts,
    *,
    scaling: float,
    window: int | None = None,
    only_wanted: bool = False,
    bias: DistanceBias | None = None,
) -> Tensor:
    """``[T, H, D]``. ``window``: keys less than so far away. ``only_wanted``: the queries are of `Texts.wanted_places`.

    ``bias`` and ``window`` exclude each other.
    """
    assert bias is None or window is None
    if _suits_kernel(q_THD, k_THD, v_THD):
        query_starts = texts.wanted_starts_tensor if only_wanted else texts.starts_tensor
        return _by_kernel(q_THD, k_THD, v_THD, query_starts, texts.starts_tensor, None, scaling, window, bias)
    query_lengths = texts.wanted_lengths if only_wanted else texts.lengths
    queries, keys, values = (
        torch.split(states, lengths)
        for states, lengths in ((q_THD, query_lengths), (k_THD, texts.lengths), (v_THD, texts.lengths))
    )
    parts = zip(queries, keys, values, strict=True)
    return torch.cat([_attend_one(*part, scaling, window, bias) for part in parts])


def _attend_one(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    scaling: float,
    window: int | None,
    bias: DistanceBias | None,
    place: int = 0,
) -> Tensor:
    """``place`` is that of the first query."""
    places = torch.arange(len(k_THD), device=k_THD.device)
    distances = places - places[place : place + len(q_THD), None]
    if bias is not None:
        return _attend_biased(q_THD, k_THD, v_THD, scaling, bias.at(distances))
    mask = distances.abs() < window if window is not None and window < len(k_THD) else None
    q, k, v = (states.transpose(0, 1)[None] for states in (q_THD, k_THD, v_THD))
    is_grouped = q_THD.shape[1] != k_THD.shape[1]
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=is_grouped)
    return out[0].transpose(0, 1)


def _attend_biased(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, scaling: float, bias_HQC: Tensor) -> Tensor:
    """Scores in float32, as the kernel has them."""
    group = q_THD.shape[1] // k_THD.shape[1]
    k_THD, v_THD = (states.repeat_interleave(group, dim=1) for states in (k_THD, v_THD))
    q, k, v = (states.transpose(0, 1) for states in (q_THD, k_THD, v_THD))
    scores = q.float() @ k.float().transpose(1, 2) * scaling + bias_HQC
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(0, 1)


def _suits_kernel(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> bool:
    width = q_THD.shape[-1]
    return (
        kernels.has("encoder_attention")
        and q_THD.is_cpu
        and q_THD.dtype in KERNEL_DTYPES
        and width == v_THD.shape[-1] <= KERNEL_MAX_HEAD_DIM
        and width % 16 == 0
        and all(states.stride(-1) == 1 and states.dtype == q_THD.dtype for states in (q_THD, k_THD, v_THD))
    )


def _by_kernel(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    places: Tensor | None,
    scaling: float,
    window: int | None,
    bias: DistanceBias | None,
) -> Tensor:
    """Starts are those of each text, and the end of the last; ``places`` of the first queries, None where all are 0."""
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype)
    states = (q_THD, k_THD, v_THD)
    kernels.get("encoder_attention")(
        *(tensor.data_ptr() for tensor in (*states, out_THD, query_starts, key_starts)),
        len(key_starts) - 1, q_THD.shape[1], k_THD.shape[1], q_THD.shape[2],
        *(tensor.stride(dim) for tensor in states for dim in (0, 1)),
        *((0, 0, 0) if bias is None else (bias.table_HL.data_ptr(), bias.table_HL.shape[1], bias.middle)),
        kernels.address(places), scaling, window or 0, q_THD.dtype is torch.bfloat16,
    )  # fmt: skip
    return out_THD
