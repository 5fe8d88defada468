"""Beam sampling: continuations drawn without replacement, each by one random number of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from server.engine.beam_pool import FloatArray
from server.engine.randomness import uniforms

BLOCK = 256


def draw(
    scores: FloatArray, num_wanted: int, *, seed: int, position: int, is_allowed: Callable[[int], bool]
) -> list[int]:
    """Up to ``num_wanted`` indices in the order in which they are drawn; a score is the logarithm of a weight.

    Draw number ``d`` takes the first index whose cumulated weight, over what has not been drawn, is above the number
    ``uniforms(seed, d, position)`` of the whole. What is not allowed is drawn like the rest and left out: the others
    then come as if it were not there.
    """
    drawn = _drawn(_weights(scores), _numbers(seed, position))
    chosen: list[int] = []
    while len(chosen) < num_wanted and (index := next(drawn, None)) is not None:
        if is_allowed(index):
            chosen.append(index)
    return chosen


def _weights(scores: FloatArray) -> FloatArray:
    """The greatest is 1; zero where float32 cannot hold them."""
    with np.errstate(under="ignore", invalid="ignore"):
        weights: FloatArray = np.exp(scores - scores.max())
    return weights


def _numbers(seed: int, position: int) -> Iterator[float]:
    first = 0
    while True:
        numbers = range(first, first + 32)
        yield from uniforms([seed] * 32, numbers, [position] * 32).tolist()
        first = numbers.stop


def _drawn(weights: FloatArray, numbers: Iterator[float]) -> Iterator[int]:
    """Indices of positive weight, until none is left."""
    num_blocks = -(-len(weights) // BLOCK)
    blocks = np.pad(weights, (0, num_blocks * BLOCK - len(weights))).reshape(num_blocks, BLOCK)
    sums = blocks.sum(-1, dtype=np.float64)
    for number in numbers:
        cumulated = sums.cumsum()
        if not cumulated[-1] > 0:
            return
        target = number * cumulated[-1]
        block = _first_above(cumulated, target, sums)
        inside = blocks[block].astype(np.float64)
        index = _first_above(inside.cumsum(), target - (cumulated[block] - sums[block]), inside)
        yield block * BLOCK + index
        blocks[block, index] = 0.0
        sums[block] = blocks[block].sum(dtype=np.float64)


def _first_above(cumulated: npt.NDArray[np.float64], target: float, weights: npt.NDArray[np.float64]) -> int:
    """First index of positive weight with ``cumulated > target``; the last such where rounding leaves none."""
    first = int(cumulated.searchsorted(target, side="right"))
    if first < len(weights) and weights[first] > 0:
        return first
    positive = np.flatnonzero(weights)
    return int(positive[min(int(positive.searchsorted(first)), len(positive) - 1)])
