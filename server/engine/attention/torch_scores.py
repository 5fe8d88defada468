"""What torch's fused attention cannot do, in steps, and the masks of causal attention.

Dimension key
    B  sequences
    C  places of a gathered context
    Q  new tokens of one sequence
    H  key/value heads
    G  query heads per key/value head
    D  width of keys or values
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from server.modules.attention import LayerSpec


def causal_bias(
    num_new: int, num_places: int, offset: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``[1, Q, C]`` for new tokens at places ``offset``, ``offset + 1``, ..."""
    new_Q1 = torch.arange(offset, offset + num_new, device=device)[:, None]
    place_C = torch.arange(num_places, device=device)
    hidden = place_C > new_Q1
    if window is not None:
        hidden |= place_C <= new_Q1 - window
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -math.inf)[None]


def attend_in_steps(
    spec: LayerSpec,
    query_BHQD: Tensor,
    key: Tensor,
    value: Tensor,
    hidden_BQC: Tensor,
    sinks: Tensor | None,
    distances_BQC: Tensor | None,
) -> Tensor:
    """Attention with a softcap, sinks or a bias, scores in float32: what torch's fused kernels cannot do."""
    B, _, Q, D = query_BHQD.shape
    H, G, C = spec.num_kv_heads, spec.num_heads // spec.num_kv_heads, key.shape[2]
    rows = query_BHQD.reshape(B, H, G * Q, D)
    scores = (rows @ key.transpose(2, 3)).float().view(B, H, G, Q, C) * spec.scaling
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    if spec.bias is not None and distances_BQC is not None:
        scores = scores + spec.bias.at(distances_BQC).transpose(0, 1).reshape(-1, H, G, *distances_BQC.shape[1:])
    scores = scores + hidden_BQC[:, None, None]
    if sinks is not None:
        # A sink is one more place to look at, without a value.
        places = sinks.float().view(1, H, G, 1, 1).expand(B, H, G, Q, 1)
        scores = torch.cat((scores, places), dim=-1)
    weights = scores.softmax(-1)[..., :C].to(value.dtype)
    out = weights.reshape(B, H, G * Q, C) @ value
    return out.view(B, spec.num_heads, Q, spec.value_dim)
