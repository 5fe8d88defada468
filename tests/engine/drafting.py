"""A fake model that repeats itself, and drafters that try everything."""

from __future__ import annotations

import random
from collections.abc import Sequence as Rows
from hashlib import blake2b

import numpy as np
import torch

from server.engine.batch import Share
from server.engine.batch_inputs import IntArray
from server.engine.pacing import Pacing
from server.engine.prompt_lookup import Drafter
from tests.engine.fake_runner import POISON, VOCAB_SIZE, FakeRunner


class RepeatingRunner(FakeRunner):
    """Its next token mostly depends on the last two, so that its text runs in circles; a little on all the others."""

    is_row_invariant = True

    @staticmethod
    def logits_of(prefix: np.ndarray) -> torch.Tensor:
        if (prefix[:, 0] == POISON).any():
            return torch.full((VOCAB_SIZE,), torch.nan)
        mostly = _normal(prefix[-2:, 0] % 8, 3.0)
        mostly[POISON] = -1e9
        return torch.from_numpy(mostly + _normal(prefix, 0.4)).float()


def _normal(key: np.ndarray, scale: float) -> np.ndarray:
    seed = int.from_bytes(blake2b(key.tobytes(), digest_size=8).digest(), "little")
    return np.random.default_rng(seed).normal(scale=scale, size=VOCAB_SIZE)


class Known(Pacing):
    """Every step takes a second."""

    def plain_s(self, num_rows: int) -> float | None:
        return 1.0


class EagerDrafter(Drafter):
    """Drafts whatever it finds, in lengths at random."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(Known())
        self._rng = random.Random(seed)

    def _best_length(self, shares: Rows[Share], found: list[IntArray]) -> int:
        return self._rng.choice([0, 1, 2, 4, 8, 8])
