"""Penalties on tokens that were there before."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor

from server.engine.batch_inputs import IntArray, on_device
from server.engine.processors.base import LogitsProcessor, Start, TokenCounts, flat_indices


class RepetitionPenalty(LogitsProcessor):
    """Make every token already in the sequence less likely.

    A positive logit is divided by the penalty and a negative one multiplied,
    so that a penalty above 1 lowers both. The prompt counts, as in transformers.
    """

    def __init__(self, penalty: float, token_ids: IntArray) -> None:
        self.penalty = penalty
        self.seen = TokenCounts(token_ids)

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        if start.params.repetition_penalty == 1.0:
            return None
        return cls(start.params.repetition_penalty, np.concatenate([start.prompt_ids, start.output_ids]))

    def accept(self, token_id: int) -> None:
        self.seen.add(token_id)

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        ids = [processor.seen.ids for processor in processors]
        indices_N = on_device(flat_indices(rows, ids, logits_SV.shape[1]), logits_SV.device)
        penalties = np.repeat(np.array([p.penalty for p in processors], dtype=np.float32), [len(i) for i in ids])
        penalty_N = on_device(penalties, logits_SV.device)
        flat = logits_SV.view(-1)
        logits_N = flat[indices_N]
        flat[indices_N] = torch.where(logits_N < 0, logits_N * penalty_N, logits_N / penalty_N)


class OutputPenalty(LogitsProcessor):
    """Presence and frequency penalty: lower each token of the output, once and once per occurrence.

    The prompt does not count, as in OpenAI's API.
    """

    def __init__(self, presence: float, frequency: float, output_ids: IntArray) -> None:
        self.presence = presence
        self.frequency = frequency
        self.seen = TokenCounts(output_ids)

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        if start.params.presence_penalty == 0.0 and start.params.frequency_penalty == 0.0:
            return None
        return cls(start.params.presence_penalty, start.params.frequency_penalty, start.output_ids)

    def accept(self, token_id: int) -> None:
        self.seen.add(token_id)

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        ids = [processor.seen.ids for processor in processors]
        amounts = np.concatenate([p.presence + p.frequency * p.seen.counts for p in processors])
        indices_N = on_device(flat_indices(rows, ids, logits_SV.shape[1]), logits_SV.device)
        logits_SV.view(-1)[indices_N] -= on_device(amounts.astype(np.float32), logits_SV.device)
