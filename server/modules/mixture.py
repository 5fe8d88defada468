"""The weighted sum of adapters, which is an adapter again where each adds a product of two matrices to a layer.

As PEFT's `add_weighted_adapter` with the combination `cat`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from server.modules.adapted import LayerChange, NotShared


def weighted_sum(parts: Sequence[tuple[float, Mapping[str, LayerChange]]]) -> dict[str, LayerChange]:
    """Each part's changes by name of the layer, with its weight. Raises `NotShared` for what does not add up."""
    by_layer: dict[str, list[tuple[float, LayerChange]]] = {}
    for weight, changes in parts:
        for name, change in changes.items():
            by_layer.setdefault(name, []).append((weight, change))
    return {name: _sum(name, changes) for name, changes in by_layer.items()}


def _sum(name: str, parts: Sequence[tuple[float, LayerChange]]) -> LayerChange:
    for _, change in parts:
        unlike = (change.in_K, change.out_N, change.magnitude_N, change.bias_N)
        if any(tensor is not None for tensor in unlike):
            raise NotShared(f"only LoRA without DoRA and without trained biases adds up, and {name} has more")
    factors = [(w, change.a_RK, change.b_NR) for w, change in parts if change.a_RK is not None]
    added = [w * change.added_N for w, change in parts if change.added_N is not None]
    return LayerChange(
        a_RK=torch.cat([a_RK for _, a_RK, _ in factors]) if factors else None,
        b_NR=torch.cat([w * b_NR for w, _, b_NR in factors if b_NR is not None], dim=1) if factors else None,
        added_N=torch.stack(added).sum(0) if added else None,
    )
