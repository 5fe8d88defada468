"""The attention calls of encoders' modules, answered for texts that lie end to end; no mask is ever built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from server.modules.attention_calls import answering
from server.modules.text_attention import attend
from server.modules.texts import Texts
from server.modules.unsupported import Unsupported

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
