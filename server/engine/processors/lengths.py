"""Rules that make a sequence longer or shorter."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor

from server.engine.batch_inputs import IntArray, on_device
from server.engine.processors.base import LogitsProcessor, Start, flat_indices


class MinNewTokens(LogitsProcessor):
    """Forbid the tokens that would end the sequence until it has ``min_new_tokens`` new ones."""

    def __init__(self, num_missing: int, banned_ids: IntArray) -> None:
        self.num_missing = num_missing
        self.banned_ids = banned_ids

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        num_missing = start.params.min_new_tokens - len(start.output_ids)
        if num_missing <= 0 or not start.ending_ids:
            return None
        return cls(num_missing, np.array(sorted(start.ending_ids), dtype=np.int64))

    def accept(self, token_id: int) -> None:  # noqa: ARG002
        self.num_missing -= 1
        self.is_spent = self.num_missing == 0

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        vocab_size = logits_SV.shape[1]
        ids = [p.banned_ids[p.banned_ids < vocab_size] if p.num_missing > 0 else p.banned_ids[:0] for p in processors]
        indices_N = on_device(flat_indices(rows, ids, vocab_size), logits_SV.device)
        logits_SV.view(-1)[indices_N] = -torch.inf
