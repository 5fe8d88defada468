"""Cutting an input that is longer than its model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from server.text.tokenizer import Tokenizer

Side = Literal["right", "left"]


class Truncation(NamedTuple):
    """How an input that is too long is cut."""

    max_tokens: int | None = None
    """None: as many as the model takes."""
    side: Side | None = None
    """Where tokens go from: the end of a text, or its beginning. None: as the model's tokenizer says."""


def kept_positions(sequence_ids: Sequence[int | None], max_tokens: int, side: Side = "right") -> list[int]:
    """Which tokens of an encoded text or pair stay, as under transformers' ``truncation=True``.

    ``sequence_ids`` is None at special tokens, which all stay. Of a pair, the longer text is cut first.

    >>> kept_positions([None, 0, 0, 0, 0, None, 1, 1, None], max_tokens=7)
    [0, 1, 2, 5, 6, 7, 8]
    >>> kept_positions([None, 0, 0, 0, 0, None, 1, 1, None], max_tokens=7, side="left")
    [0, 3, 4, 5, 6, 7, 8]
    """
    lengths = [sum(id_ == sequence for id_ in sequence_ids) for sequence in (0, 1)]
    budget = max_tokens - (len(sequence_ids) - sum(lengths))
    limits = _longest_first(lengths, max(budget, 0))
    skipped = [length - limit if side == "left" else 0 for length, limit in zip(lengths, limits, strict=True)]
    kept: list[int] = []
    seen = [0, 0]
    for position, sequence in enumerate(sequence_ids):
        if sequence is not None:
            number = seen[sequence] - skipped[sequence]
            seen[sequence] += 1
            if not 0 <= number < limits[sequence]:
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


def prompt_ids(tokenizer: Tokenizer, text: str, truncate: int | None) -> tuple[list[int], bool]:
    """The text's tokens, with the special ones that the tokenizer puts around a text, and whether some were cut off."""
    encoding = tokenizer.encode(text)
    ids: list[int] = encoding.ids
    if truncate is None or len(ids) <= truncate:
        return ids, False
    num_leading = next((i for i, special in enumerate(encoding.special_tokens_mask) if not special), 0)
    kept = ids[: min(num_leading, truncate - 1)]
    return kept + ids[len(ids) - (truncate - len(kept)) :], True
