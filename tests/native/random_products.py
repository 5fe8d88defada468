"""Products of random shapes and kinds, the same for one trial number everywhere."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from server.native import kernels
from server.native.formats import FORMATS
from server.native.linear import Linear
from server.number_types import Quantize

KINDS: list[tuple[torch.dtype, Quantize]] = [
    (dtype, quantize) for dtype in (torch.bfloat16, torch.float32) for quantize in get_args(Quantize)
]


@dataclass(frozen=True)
class Product:
    """What a `Linear` is made of, and what it is given."""

    weight_NK: Tensor
    bias_N: Tensor | None
    activation: str | None
    is_gated: bool
    quantize: Quantize
    x_MK: Tensor
    residual_MN: Tensor | None
    out_float: bool

    def run(self, first: int = 0, stop: int | None = None) -> Tensor:
        """Of some rows of the input, with the kernels in use."""
        linear = Linear(
            self.weight_NK, self.bias_N, activation=self.activation, is_gated=self.is_gated, quantize=self.quantize
        )
        residual = None if self.residual_MN is None else self.residual_MN[first:stop]
        return linear(self.x_MK[first:stop], residual, out_float=self.out_float)


def product(trial: int) -> Product:
    """Often at an edge: one row, one more than a tile or a panel has, one step of K more than a tile."""
    chance = random.Random(trial)
    numbers = torch.Generator().manual_seed(trial)
    dtype, quantize = chance.choice(KINDS)
    width = max(2, FORMATS[quantize].multiple(dtype)) * chance.choice([1, 16, 17, chance.randint(1, 40)])
    half = chance.choice([1, 47, 48, 49, chance.randint(1, 150)])
    num_rows = chance.choice([1, 15, 16, 17, 31, 32, 33, chance.randint(1, 100)])
    is_gated = chance.random() < 0.4
    num_outputs = 2 * half if is_gated else half
    activations = ["silu", "gelu", "gelu_tanh", "relu"] if is_gated else [None, "silu", "gelu", "gelu_tanh", "relu"]
    return Product(
        (torch.randn(num_outputs, width, generator=numbers) / width**0.5).to(dtype),
        torch.randn(num_outputs, generator=numbers) if chance.random() < 0.5 else None,
        chance.choice(activations),
        is_gated,
        quantize,
        torch.randn(num_rows, width, generator=numbers).to(dtype),
        torch.randn(num_rows, half, generator=numbers).to(dtype) if chance.random() < 0.5 else None,
        chance.random() < 0.5,
    )


def with_kernels(name: str, num_threads: int, product: Product) -> Tensor:
    kernels.use(name, num_threads)
    return product.run()
