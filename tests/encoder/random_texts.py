"""Queries, keys and values of texts that lie end to end.

Dimension key: T tokens of all texts, H heads of queries or of keys and values, D width of a head.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from server.modules.text_attention import attend
from server.modules.texts import Texts
from tests.native.random_lengths import any_length


def states(shape: tuple[int, int, int], num_tokens: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
    """``[T, H, D]`` each, of heads of queries, heads of keys and values, and their width."""
    generator = torch.Generator().manual_seed(seed)
    num_heads, num_kv_heads, width = shape
    return tuple(
        (spread * torch.randn(num_tokens, heads, width, generator=generator)).to(dtype)
        for heads, spread in ((num_heads, 2.0), (num_kv_heads, 1.0), (num_kv_heads, 1.0))
    )


@dataclass
class RandomTexts:
    """Up to five texts, with heads, a width and a window that are drawn too."""

    texts: Texts
    states: tuple[Tensor, ...]
    window: int | None

    def together(self) -> list[Tensor]:
        return list(self._attend(self.texts, self.states).split(self.texts.lengths))

    def alone(self) -> list[Tensor]:
        parts = zip(*(each.split(self.texts.lengths) for each in self.states), strict=True)
        return [self._attend(Texts([len(part[0])]), part) for part in parts]

    def _attend(self, texts: Texts, states: tuple[Tensor, ...]) -> Tensor:
        q, k, v = states
        return attend(q, k, v, texts, scaling=q.shape[-1] ** -0.5, window=self.window)


def random_texts(seed: int, dtype: torch.dtype, max_length: int) -> RandomTexts:
    chance = random.Random(seed)
    num_kv_heads, group = chance.choice([1, 2, 3]), chance.choice([1, 1, 2, 5])
    shape = (num_kv_heads * group, num_kv_heads, 16 * chance.randrange(1, 17))
    texts = Texts([any_length(chance, max_length) for _ in range(chance.randrange(1, 6))])
    return RandomTexts(texts, states(shape, texts.starts[-1], dtype, seed), chance.choice([None, 5, 90]))
