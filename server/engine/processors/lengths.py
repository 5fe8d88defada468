"""Rules that make a sequence longer or shorter."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor

from server.engine.batch_inputs import IntArray, on_device
from server.engine.processors.base import HIGHEST_LOGIT, LogitsProcessor, Start, flat_indices, forbid


class MinNewTokens(LogitsProcessor):
    """Forbid the tokens that would end the sequence until it has ``min_new_tokens`` new ones."""

    def __init__(self, num_missing: int, ending_ids: IntArray) -> None:
        self.num_missing = num_missing
        self.ending_ids = ending_ids

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        num_missing = start.params.min_new_tokens - len(start.output_ids)
        if num_missing <= 0 or not start.ending_ids:
            return None
        return cls(num_missing, sorted_ids(start.ending_ids))

    def accept(self, token_id: int) -> None:  # noqa: ARG002
        self.num_missing -= 1
        self.is_spent = self.num_missing <= 0

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        forbid(logits_SV, rows, [p.ending_ids for p in processors])


class ExponentialDecayLengthPenalty(LogitsProcessor):
    """From a number of new tokens on, lift the tokens that end the sequence by a factor that grows with each token."""

    def __init__(self, first: int, factor: float, num_new: int, ending_ids: IntArray) -> None:
        self.first = first
        self.factor = factor
        self.num_new = num_new
        self.ending_ids = ending_ids

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        rule = start.params.exponential_decay_length_penalty
        if rule is None or not start.ending_ids:
            return None
        return cls(*rule, len(start.output_ids), sorted_ids(start.ending_ids))

    def accept(self, token_id: int) -> None:  # noqa: ARG002
        self.num_new += 1

    @property
    def growth(self) -> float:
        """What is added to a logit, as a multiple of its absolute value."""
        try:
            return min(self.factor ** (self.num_new - self.first) - 1, HIGHEST_LOGIT)
        except OverflowError:
            return HIGHEST_LOGIT

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        started = [(row, p) for row, p in zip(rows, processors, strict=True) if p.num_new > p.first]
        if not started:
            return
        vocab_size = logits_SV.shape[1]
        ids = [p.ending_ids[p.ending_ids < vocab_size] for _, p in started]
        growth = np.repeat(np.array([p.growth for _, p in started], dtype=np.float32), [len(i) for i in ids])
        indices_N = on_device(flat_indices([row for row, _ in started], ids, vocab_size), logits_SV.device)
        flat = logits_SV.view(-1)
        logits_N = flat[indices_N]
        raised_N = logits_N + logits_N.abs() * on_device(growth, logits_SV.device)
        flat[indices_N] = torch.where(logits_N.isfinite(), raised_N.clamp_(max=HIGHEST_LOGIT), logits_N)


def sorted_ids(ids: frozenset[int]) -> IntArray:
    return np.array(sorted(ids), dtype=np.int64)
