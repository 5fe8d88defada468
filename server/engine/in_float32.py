"""The plain module in float32, although its weights are in 16 bits: what a runner in 16 bits is compared with.

Two ways to compute in 16 bits may both be right and differ more than a wrong one does: each rounds in other places.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def in_float32(module: PreTrainedModel) -> Iterator[None]:
    """Within, each layer has float32 weights while it computes. So one layer's copy is all the memory that it takes."""
    dtype = module.dtype
    kept: dict[nn.Module, list[tuple[nn.Parameter, Tensor]]] = {}

    def widen(part: nn.Module, *_: object) -> None:
        # What is made in inference mode cannot be the data of a parameter.
        with torch.inference_mode(False):
            kept[part] = [(each, each.data) for each in part.parameters() if each.dtype == dtype]
            for parameter, data in kept[part]:
                parameter.data = data.float()

    def put_back(part: nn.Module, *_: object) -> None:
        for parameter, data in kept.pop(part):
            parameter.data = data

    handles = []
    for part in _parts(module):
        handles += [part.register_forward_pre_hook(widen), part.register_forward_hook(put_back)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for part in list(kept):
            put_back(part)


def _parts(module: PreTrainedModel) -> list[nn.Module]:
    """Whole layers, by the names that transformers gives them, and what has weights outside of them."""
    names = set(module._no_split_modules or ())
    layers = [part for part in module.modules() if type(part).__name__ in names]
    inside = {part for layer in layers for part in layer.modules()}
    has_own = [part for part in module.modules() if next(part.parameters(recurse=False), None) is not None]
    return layers + [part for part in has_own if part not in inside]
