"""Classifier-free guidance: a row's logits led away from those of its shadow, as transformers does it.

Dimension key
    B  rows of a step
    G  guided rows that choose a token
    V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from server.engine import prompt_scores
from server.protocol import TokenLogprob


@dataclass(frozen=True, slots=True)
class Pair:
    """A guided row and its shadow, by their places in the step."""

    row: int
    shadow: int
    scale: float


class Unguided:
    """The model's own log-probabilities of guided rows, which are told instead of the guided ones."""

    def __init__(self, logprobs_GV: Tensor, pairs: Sequence[Pair]) -> None:
        self._logprobs_GV = logprobs_GV
        self._places = {pair.row: i for i, pair in enumerate(pairs)}

    def __contains__(self, row: int) -> bool:
        return row in self._places

    def logprob(self, row: int, token_id: int) -> float:
        return float(self._logprobs_GV[self._places[row], token_id])

    def most_likely(self, row: int, count: int) -> list[TokenLogprob]:
        place = self._places[row]
        return prompt_scores.most_likely(self._logprobs_GV[place : place + 1], count)[0]


def combine(logits_BV: Tensor, pairs: Sequence[Pair]) -> Unguided:
    """Put the guided logits, which are not normalised, in the place of the rows' own."""
    rows, shadows = [pair.row for pair in pairs], [pair.shadow for pair in pairs]
    with_G = logits_BV[rows].log_softmax(-1)
    without_G = logits_BV[shadows].log_softmax(-1)
    scale_G1 = logits_BV.new_tensor([[pair.scale] for pair in pairs])
    logits_BV[rows] = scale_G1 * (with_G - without_G) + without_G
    return Unguided(with_G, pairs)
