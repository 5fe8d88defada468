"""Attention of texts that lie end to end: each token sees the tokens of its own text, and no mask is ever built.

Dimension key
    T  tokens of all texts
    H  heads; keys and values may have fewer
    D  width of a head
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.encoder.texts import Texts
from server.modules.attention_calls import answering
from server.modules.unsupported import Unsupported
from server.native import kernels

KERNEL_DTYPES = (torch.float32, torch.bfloat16)
KERNEL_MAX_HEAD_DIM = 256

UNKNOWN = ("position_bias", "softcap", "s_aux", "indices", "block_indices", "cache")
"""Options of attention that change its result and that are not answered here."""


class _Step:
    """The texts of the forward pass that is running."""

    texts: Texts | None = None
    num_calls = 0


@contextmanager
def laid_out(texts: Texts) -> Iterator[None]:
    """Within, attention calls are answered for these texts."""
    _Step.texts, _Step.num_calls = texts, 0
    try:
        with answering(_answer):
            yield
    finally:
        _Step.texts = None


def current_texts() -> Texts:
    assert _Step.texts is not None, "only within laid_out"
    return _Step.texts


def num_calls() -> int:
    """Attention calls since the last `laid_out` began."""
    return _Step.num_calls


def _answer(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, options: dict[str, Any]
) -> Tensor:
    texts = current_texts()
    _Step.num_calls += 1
    if attention_mask is not None:
        raise Unsupported("it builds attention masks of its own")
    for name in UNKNOWN:
        if options.get(name) is not None:
            raise Unsupported(f"its attention uses {name}")
    if options.get("is_causal") or getattr(module, "is_causal", False):
        raise Unsupported("its attention is causal")
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    if not len(q) == len(k) == texts.starts[-1]:
        raise Unsupported("its attention is not among the tokens alone")
    scaling = options.get("scaling")
    out_THD = attend(
        q, k, v, texts, scaling=q.shape[-1] ** -0.5 if scaling is None else float(scaling),
        window=options.get("sliding_window"),
    )  # fmt: skip
    return out_THD[None]


def attend(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    texts: Texts,
    *,
    scaling: float,
    window: int | None = None,
    is_first_only: bool = False,
) -> Tensor:
    """``[T, H, D]``. ``window``: keys less than so far away. ``is_first_only``: a text's first token asks alone."""
    if _suits_kernel(q_THD, k_THD, v_THD):
        return _by_kernel(q_THD, k_THD, v_THD, texts, scaling, window, is_first_only)
    query_lengths = [1] * len(texts) if is_first_only else texts.lengths
    queries, keys, values = (
        torch.split(states, lengths)
        for states, lengths in ((q_THD, query_lengths), (k_THD, texts.lengths), (v_THD, texts.lengths))
    )
    parts = zip(queries, keys, values, strict=True)
    return torch.cat([_attend_one(*part, scaling, window) for part in parts])


def _attend_one(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, scaling: float, window: int | None) -> Tensor:
    mask = None
    if window is not None and window < len(k_THD):
        places = torch.arange(len(k_THD), device=k_THD.device)
        mask = (places[: len(q_THD), None] - places).abs() < window
    q, k, v = (states.transpose(0, 1)[None] for states in (q_THD, k_THD, v_THD))
    is_grouped = q_THD.shape[1] != k_THD.shape[1]
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=is_grouped)
    return out[0].transpose(0, 1)


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
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, texts: Texts, scaling: float, window: int | None, is_first_only: bool
) -> Tensor:
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype)
    query_starts = texts.singles_tensor if is_first_only else texts.starts_tensor
    states = (q_THD, k_THD, v_THD)
    kernels.get("encoder_attention")(
        *(tensor.data_ptr() for tensor in (*states, out_THD, query_starts, texts.starts_tensor)),
        len(texts), q_THD.shape[1], k_THD.shape[1], q_THD.shape[2],
        *(tensor.stride(dim) for tensor in states for dim in (0, 1)),
        scaling, window or 0, q_THD.dtype is torch.bfloat16,
    )  # fmt: skip
    return out_THD
