"""Leads the lanes of a diverse beam search away from one another."""

from __future__ import annotations

from typing import Self

import numpy as np
from torch import Tensor

from server.engine.batch_inputs import IntArray, on_device
from server.engine.processors.base import LogitsProcessor, Start, flat_indices


class HammingDiversity(LogitsProcessor):
    """Lower each token by the penalty for every row of the lanes before that chose it in this step."""

    def __init__(self, penalty: float) -> None:
        self.penalty = penalty
        self._ids: IntArray = np.zeros(0, dtype=np.int64)
        self._counts: IntArray = self._ids

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        params = start.params
        is_asked = params.num_beam_groups > 1 and params.diversity_penalty != 0.0
        return cls(params.diversity_penalty) if is_asked else None

    def lead_away_from(self, token_ids: list[int]) -> None:
        """What the lanes before chose, before each `apply`."""
        self._ids, self._counts = np.unique(np.array(token_ids, dtype=np.int64), return_counts=True)

    def accept(self, token_id: int) -> None:
        """The tokens of the output do not matter."""

    def fork(self) -> Self:
        return type(self)(self.penalty)

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        indices_N = on_device(flat_indices(rows, [p._ids for p in processors], logits_SV.shape[1]), logits_SV.device)
        amounts = np.concatenate([p.penalty * p._counts for p in processors])
        logits_SV.view(-1)[indices_N] -= on_device(amounts.astype(np.float32), logits_SV.device)
