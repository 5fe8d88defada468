"""Penalties on tokens that were there before."""

from __future__ import annotations

import copy
from typing import Self

import numpy as np
import torch
from torch import Tensor

from server.engine.batch_inputs import IntArray, on_device
from server.engine.processors.base import HIGHEST_LOGIT, LogitsProcessor, Start, add, flat_indices
from server.engine.processors.token_counts import Scope, ScopedCounts


class EncoderRepetitionPenalty(LogitsProcessor):
    """Make every token of the prompt or source more likely, or less by a penalty below 1.

    It is a repetition penalty turned over.
    """

    def __init__(self, penalty: float, prompt_ids: IntArray) -> None:
        self.penalty = _bounded(1 / penalty)
        self.prompt_ids = prompt_ids

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        penalty = start.params.encoder_repetition_penalty
        return None if penalty == 1.0 else cls(penalty, ScopedCounts(start, "prompt").ids)

    def accept(self, token_id: int) -> None:
        """The prompt stays as it is."""

    def fork(self) -> Self:
        return self

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        _scale(logits_SV, rows, [p.prompt_ids for p in processors], [p.penalty for p in processors])


class RepetitionPenalty(LogitsProcessor):
    """Make every token already in the sequence less likely, however often it is there.

    A positive logit is divided by the penalty and a negative one multiplied, so that a penalty above 1 lowers both.
    Without a scope the prompt counts, as in transformers; the source of an encoder-decoder does not.
    """

    def __init__(self, penalty: float, seen: ScopedCounts) -> None:
        self.penalty = _bounded(penalty)
        self.seen = seen

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        params = start.params
        if params.repetition_penalty == 1.0:
            return None
        return cls(params.repetition_penalty, ScopedCounts(start, _or(params.penalty_scope, "decoder")))

    def accept(self, token_id: int) -> None:
        self.seen.accept(token_id)

    def fork(self) -> Self:
        twin = copy.copy(self)
        twin.seen = self.seen.fork()
        return twin

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        _scale(logits_SV, rows, [p.seen.ids for p in processors], [p.penalty for p in processors])


class OutputPenalty(LogitsProcessor):
    """Presence and frequency penalty: lower each token that was seen, once and once per occurrence.

    Without a scope the prompt does not count, as in OpenAI's API.
    """

    def __init__(self, presence: float, frequency: float, seen: ScopedCounts) -> None:
        self.presence = presence
        self.frequency = frequency
        self.seen = seen

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        params = start.params
        if params.presence_penalty == 0.0 and params.frequency_penalty == 0.0:
            return None
        seen = ScopedCounts(start, _or(params.penalty_scope, "output"))
        return cls(params.presence_penalty, params.frequency_penalty, seen)

    def accept(self, token_id: int) -> None:
        self.seen.accept(token_id)

    def fork(self) -> Self:
        twin = copy.copy(self)
        twin.seen = self.seen.fork()
        return twin

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        amounts = [-(p.presence + p.frequency * p.seen.counts.astype(np.float64)) for p in processors]
        add(logits_SV, rows, [p.seen.ids for p in processors], amounts)


def _scale(logits_SV: Tensor, rows: list[int], ids: list[IntArray], penalties: list[float]) -> None:
    """Divide positive logits by the row's penalty and multiply negative ones."""
    indices_N = on_device(flat_indices(rows, ids, logits_SV.shape[1]), logits_SV.device)
    repeated = np.repeat(np.array(penalties, dtype=np.float32), [len(row_ids) for row_ids in ids])
    penalty_N = on_device(repeated, logits_SV.device)
    flat = logits_SV.view(-1)
    logits_N = flat[indices_N]
    flat[indices_N] = torch.where(logits_N < 0, logits_N * penalty_N, logits_N / penalty_N).clamp_(max=HIGHEST_LOGIT)


def _bounded(penalty: float) -> float:
    """A penalty that is neither zero nor infinite in float32."""
    return min(max(penalty, 1e-30), 1e30)


def _or(scope: Scope | None, default: Scope) -> Scope:
    return default if scope is None else scope
