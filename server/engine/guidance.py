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

from server.engine.logprobs import Distribution
from server.engine.reductions import Scratch
from server.protocol import SamplingParams, TokenLogprob


@dataclass(frozen=True, slots=True)
class Pair:
    """A guided row and its shadow, by their places in the step."""

    row: int
    shadow: int
    scale: float


class Unguided:
    """The model's own logits of guided rows, whose log-probabilities are told instead of the guided ones."""

    def __init__(self, logits_GV: Tensor, pairs: Sequence[Pair]) -> None:
        self._logits_GV = logits_GV
        self._places = {pair.row: i for i, pair in enumerate(pairs)}

    def __contains__(self, row: int) -> bool:
        return row in self._places

    def tell(self, row: int, token_id: int, params: SamplingParams) -> tuple[float, list[TokenLogprob]]:
        """The token's log-probability, and those of the other tokens that are asked for."""
        place = self._places[row]
        distribution = Distribution(self._logits_GV[place : place + 1], Scratch())
        logprobs, tops = distribution.tell(self._logits_GV.new_tensor([token_id]).long(), params.top_n_tokens)
        given = distribution.given([(0, params.logprob_token_ids)])
        return logprobs[0], given[0] if params.logprob_token_ids else tops[0]

    def put_back(self, logits_RV: Tensor, rows: Sequence[int]) -> Tensor:
        """The model's own logits of some rows of the step, of which ``logits_RV`` are the guided ones."""
        guided = [(i, self._places[row]) for i, row in enumerate(rows) if row in self]
        if not guided:
            return logits_RV
        own_RV = logits_RV.clone()
        own_RV[[i for i, _ in guided]] = self._logits_GV[[place for _, place in guided]]
        return own_RV


def combine(logits_BV: Tensor, pairs: Sequence[Pair]) -> Unguided:
    """Put the guided logits, which are not normalised, in the place of the rows' own."""
    rows, shadows = [pair.row for pair in pairs], [pair.shadow for pair in pairs]
    logits_GV = logits_BV[rows]
    with_GV, without_GV = logits_GV.log_softmax(-1), logits_BV[shadows].log_softmax(-1)
    scale_G1 = logits_BV.new_tensor([[pair.scale] for pair in pairs])
    logits_BV[rows] = scale_G1 * (with_GV - without_GV) + without_GV
    return Unguided(logits_GV, pairs)
