"""Cutting the end off an input that is longer than its model takes."""

from __future__ import annotations

from collections.abc import Sequence


def kept_positions(sequence_ids: Sequence[int | None], max_tokens: int) -> list[int]:
    """Which tokens of an encoded text or pair stay, as under transformers' ``truncation=True``.

    ``sequence_ids`` is None at special tokens, which all stay. Of a pair, the longer text is cut first.

    >>> kept_positions([None, 0, 0, 0, 0, None, 1, 1, None], max_tokens=7)
    [0, 1, 2, 5, 6, 7, 8]
    """
    lengths = [sum(id_ == sequence for id_ in sequence_ids) for sequence in (0, 1)]
    budget = max_tokens - (len(sequence_ids) - sum(lengths))
    limits = _longest_first(lengths, budget)
    kept: list[int] = []
    seen = [0, 0]
    for position, sequence in enumerate(sequence_ids):
        if sequence is not None:
            seen[sequence] += 1
            if seen[sequence] > limits[sequence]:
                continue
        kept.append(position)
    return kept


def _longest_first(lengths: Sequence[int], budget: int) -> list[int]:
    """Tokens that each of two texts keeps. The shorter one is cut only if both would still not fit at half each."""
    if sum(lengths) <= budget:
        return list(lengths)
    half = budget // 2
    shorter = min(*lengths, half)
    longer = budget - shorter
    return [shorter, longer] if lengths[0] <= lengths[1] else [longer, shorter]
