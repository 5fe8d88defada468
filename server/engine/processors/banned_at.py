"""Tokens that a sequence began a banned phrase with, and that it may not choose again at the same place."""

from __future__ import annotations

from typing import Self

import numpy as np
from torch import Tensor

from server.engine.batch_inputs import IntArray
from server.engine.processors.base import LogitsProcessor, Start, forbid


class BannedAt(LogitsProcessor):
    """Forbid tokens after certain numbers of new tokens, where the sequence went back from a banned phrase."""

    def __init__(self, num_new_tokens: int, banned: dict[int, IntArray]) -> None:
        self.num_new_tokens = num_new_tokens
        self.banned = banned
        """By number of new tokens before the place; never changed."""
        self._last = max(banned)

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        num_new_tokens = len(start.output_ids)
        banned = {
            place: np.array(sorted(ids), dtype=np.int64)
            for place, ids in start.banned_at.items()
            if ids and place >= num_new_tokens
        }
        return cls(num_new_tokens, banned) if banned else None

    def accept(self, token_id: int) -> None:  # noqa: ARG002
        self.num_new_tokens += 1
        self.is_spent = self.num_new_tokens > self._last

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        now = [(row, p.banned.get(p.num_new_tokens)) for row, p in zip(rows, processors, strict=True)]
        found = [(row, ids) for row, ids in now if ids is not None]
        if found:
            forbid(logits_SV, [row for row, _ in found], [ids for _, ids in found])
