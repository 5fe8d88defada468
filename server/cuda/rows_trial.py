"""Whether the kernels of `rows` give what ``server.native.reference`` says."""

from __future__ import annotations

import torch
from torch import Tensor

from server.cuda import rows
from server.native import reference

WIDTH = 96
TOLERANCE = 0.01
"""Of a row's result, as a part of its length. A result in 16 bits is rounded."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def problem(device: torch.device) -> str | None:
    """What is wrong, as the end of a sentence."""
    generator = torch.Generator().manual_seed(0)
    wide, narrow = (torch.randn(3, width, generator=generator).to(device) for width in (2 * WIDTH, WIDTH))
    bias = torch.linspace(-1, 1, 2 * WIDTH, device=device)
    weight = bias[:WIDTH] + 2
    for dtype in DTYPES:
        x, product, residual = narrow.to(dtype), wide.to(dtype), narrow.flip(0).to(dtype)
        pairs = [
            (
                rows.norm(x, weight, None, 1e-6, is_centred=False, residual=residual),
                reference.rms_norm(x, weight, 1e-6, residual),
            ),
            (
                rows.norm(x, weight, bias[:WIDTH], 1e-5, is_centred=True),
                reference.layer_norm(x, weight, bias[:WIDTH], 1e-5),
            ),
        ]
        total, normed = rows.add_norm(x, residual, weight, None, 1e-6, is_centred=False)
        expected_total = (x.float() + residual.float()).to(dtype)
        pairs += [(total, expected_total), (normed, reference.rms_norm(expected_total, weight, 1e-6))]
        for activation in reference.ACTIVATIONS:
            found = rows.finish(product, bias, activation, is_gated=True, residual=residual, dtype=dtype)
            expected = reference.finish(product, bias, activation, is_gated=True, residual=residual)
            pairs.append((found, expected.to(dtype)))
        for found, expected in pairs:
            if not _distance(found, expected) <= TOLERANCE:
                return f"their results are {_distance(found, expected):.2g} of their length from torch's"
    return None


def _distance(found: Tensor, expected: Tensor) -> float:
    distance = (found.double() - expected.double()).norm(dim=-1) / expected.double().norm(dim=-1)
    return float(distance.max())
