"""A document longer than the model, cut into windows that overlap, and its rows put together again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def content_range(special_tokens_mask: Sequence[int]) -> range:
    """Positions of a text's own tokens, between the special tokens around it.

    >>> content_range([1, 0, 0, 1, 0, 1])
    range(1, 5)
    """
    own = [position for position, is_special in enumerate(special_tokens_mask) if not is_special]
    return range(own[0], own[-1] + 1) if own else range(len(special_tokens_mask), len(special_tokens_mask))


def plan_windows(num_tokens: int, capacity: int, overlap: int) -> list[range]:
    """Windows of at most ``capacity`` tokens, each sharing at least ``overlap`` with the one before; all are covered.

    The last one is moved back to be as long as the others: its tokens gain context and it costs the same.

    >>> plan_windows(10, capacity=4, overlap=2)
    [range(0, 4), range(2, 6), range(4, 8), range(6, 10)]
    """
    if num_tokens <= capacity:
        return [range(num_tokens)]
    starts = [*range(0, num_tokens - capacity, capacity - overlap), num_tokens - capacity]
    return [range(start, start + capacity) for start in starts]


def strided_windows(num_tokens: int, capacity: int, overlap: int) -> list[range]:
    """As tokenizers cut a text: windows of ``capacity`` tokens that share ``overlap``; the last one may be shorter.

    >>> strided_windows(9, capacity=4, overlap=2)
    [range(0, 4), range(2, 6), range(4, 8), range(6, 9)]
    """
    starts = range(0, max(1, num_tokens - overlap), capacity - overlap)
    return [range(start, min(start + capacity, num_tokens)) for start in starts]


def num_windows(num_tokens: int, capacity: int, overlap: int) -> int:
    """How many `plan_windows` or `strided_windows` makes: with a large overlap, one for almost every token.

    >>> num_windows(10, capacity=4, overlap=2), num_windows(4, capacity=4, overlap=2)
    (4, 1)
    """
    return 1 if num_tokens <= capacity else 1 - (capacity - num_tokens) // (capacity - overlap)


def merge_rows(windows: Sequence[range], rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """One row per token of the document, each from the window that shows most of what stands around the token.

    Neighbouring windows therefore change over in the middle of what they share.
    """
    cuts = [(left.stop + right.start) // 2 for left, right in itertools.pairwise(windows)]
    starts = [windows[0].start, *cuts]
    stops = [*cuts, windows[-1].stop]
    parts = [
        row[start - window.start : stop - window.start]
        for window, row, start, stop in zip(windows, rows, starts, stops, strict=True)
    ]
    return np.concatenate(parts)
