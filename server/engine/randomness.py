"""Random numbers as a pure function of what they are for; no generator, no state."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

XTC_STREAM = 1
"""`side_keys` of the numbers that decide whether XTC excludes the top choices."""


def uniforms(seeds: Iterable[int], sample_indices: Iterable[int], positions: Iterable[int]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each (seed, sample index, position), ``position`` counting the new tokens before it.

    Each part is mixed in by SplitMix64's finaliser; the upper 52 bits are the number.

    >>> uniforms([1, 1, 1], [0, 0, 1], [0, 1, 0]).round(3).tolist()
    [0.206, 0.185, 0.696]
    """
    return uniforms_at(stream_keys(seeds, sample_indices), positions)


def stream_keys(seeds: Iterable[int], sample_indices: Iterable[int]) -> npt.NDArray[np.uint64]:
    """The part of the numbers' key that stays the same for a sequence's whole life."""
    return _mix_in(_mix_in(np.zeros((), dtype=np.uint64), seeds), sample_indices)


def uniforms_at(keys: npt.NDArray[np.uint64], positions: Iterable[int]) -> npt.NDArray[np.float64]:
    """`uniforms` from their `stream_keys`."""
    # 52 bits: below 1 by more than a rounding error, so that uniform * total stays below total.
    bits = _mix_in(keys, positions) >> np.uint64(12)
    return np.ldexp(bits.astype(np.float64), -52)


def side_keys(keys: npt.NDArray[np.uint64], stream: int) -> npt.NDArray[np.uint64]:
    """Keys of another series of numbers for the same sequences."""
    return _mix_in(keys, [stream])


def _mix_in(state: npt.NDArray[np.uint64], part: Iterable[int]) -> npt.NDArray[np.uint64]:
    return _mix(state ^ _mix(np.array(list(part), dtype=np.uint64) + _GOLDEN))


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
