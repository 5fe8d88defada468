"""The attention calls of transformers' modules, answered by the caller who runs the module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

ATTENTION = "sluice"
"""No mask function is registered under this name, so transformers builds no masks."""

Answer = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor | None, dict[str, Any]], Tensor]
"""From the module that attends, queries, keys, values, a mask and options to the result."""


class _Step:
    """Who answers the attention calls of the forward pass that is running.

    A module attribute and not a keyword of the forward: some models do not hand keywords on to their attention.
    """

    answer: Answer | None = None


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """What is registered as `ATTENTION`."""
    assert _Step.answer is not None, "only within answering"
    return _Step.answer(module, query, key, value, attention_mask, options), None


AttentionInterface.register(ATTENTION, attention)


@contextmanager
def answering(answer: Answer) -> Iterator[None]:
    """Within, attention calls go to ``answer``."""
    _Step.answer = answer
    try:
        yield
    finally:
        _Step.answer = None


def configs(module: nn.Module) -> list[Any]:
    """Every config object that a part of the module reads its attention implementation from."""
    parts = {id(part.config): part.config for part in module.modules() if hasattr(part, "config")}
    return list(parts.values())


def set_attention(module: nn.Module, name: str) -> None:
    for config in configs(module):
        config._attn_implementation = name
