"""Whether the products of an encoder run in bfloat16 where the settings leave it open.

bfloat16 may give a text whose best two labels are nearly tied the other label. So it has to be much faster on this
machine, by measurement, and the labels of a few sentences have to stay the same.
"""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor

from server.encoder.quality import Nearness, Quality
from server.native.linear import Linear

MUCH_FASTER = 3.0
"""Processors with matrix units reach more than ten times the speed of float32, those with vector instructions two."""

MOST_DIFFERENCE = 0.01
"""Between two probabilities of a label."""

ROWS = 256
REPEATS = 5


@torch.inference_mode()
def speed_up(weight_NK: Tensor) -> float:
    """How many times as fast a product of this weight is in bfloat16 as in float32, best against best."""
    sides = [(Linear(weight_NK.detach().to(dtype)), dtype) for dtype in (torch.float32, torch.bfloat16)]
    inputs = [torch.ones(ROWS, weight_NK.shape[1], dtype=dtype) for _, dtype in sides]
    seconds: list[list[float]] = [[], []]
    for _ in range(REPEATS):
        for (linear, _), x_MK, times in zip(sides, inputs, seconds, strict=True):
            start = perf_counter()
            linear(x_MK)
            times.append(perf_counter() - start)
    plain_s, narrow_s = map(min, seconds)
    return plain_s / max(narrow_s, 1e-9)


def too_slow(factor: float) -> str | None:
    """Why bfloat16 is not worth it; None if it is."""
    return None if factor >= MUCH_FASTER else f"bfloat16 is {factor:.1f} times as fast here"


def wrong(found: Quality | Nearness) -> str | None:
    """Why bfloat16 is not right, by the scores of the sample; None if it is. Vectors have no labels to compare."""
    if isinstance(found, Quality) and found.share_equal == 1.0 and found.largest_difference <= MOST_DIFFERENCE:
        return None
    return f"in bfloat16 {found}"
