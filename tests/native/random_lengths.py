"""Lengths at which kernels go wrong, few of them long, so that thousands of trials take minutes."""

from __future__ import annotations

import random

LONG = 100


def any_length(chance: random.Random, longest: int) -> int:
    """In tokens. Often at an edge of one tile, of one block or of two; one of eight may be long."""
    if longest > LONG and chance.random() < 1 / 8:
        return chance.randint(LONG, longest)
    return min(longest, chance.choice([1, 15, 16, 17, 31, 32, 33, 64, 65, chance.randint(1, LONG)]))
