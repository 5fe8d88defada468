"""The live rows of a beam search and its finished hypotheses. numpy only: knows no model and no scheduler.

Dimension key
    K  live rows
    L  places for output tokens
    C  candidates: continuations of a row by one token, best first
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.engine.batch_inputs import IntArray
from server.protocol import FinishReason, TokenLogprob

FloatArray = npt.NDArray[np.float32]
TopLogprobs = list[TokenLogprob]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Continuations of the rows by one token, in the order in which they were ranked or drawn."""

    rows: IntArray
    token_ids: IntArray
    scores: FloatArray
    """Summed log-probabilities, as the rules on logits leave them, of the whole output with the token."""
    ends: npt.NDArray[np.bool_]
    """Whether the output ends with the token: an end token, a stop string, the end of a grammar."""
    logprobs: FloatArray
    """Of the tokens under the model's own distribution; zeros where not asked for."""
    top_logprobs: Sequence[TopLogprobs] = ()
    """By row, if asked for."""

    def __len__(self) -> int:
        return len(self.rows)

    def top_logprobs_of(self, row: int) -> list[TopLogprobs]:
        """Of the next token: one entry, or none where not asked for."""
        return [self.top_logprobs[row]] if self.top_logprobs else []


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One finished output of a beam search."""

    token_ids: IntArray
    score: float
    """Summed log-probability over the number of tokens to the power of ``length_penalty``."""
    finish_reason: FinishReason
    logprobs: FloatArray
    top_logprobs: list[TopLogprobs]


class Histories:
    """What each live row has chosen so far. Rows are copied whole when they fork: one copy of an array a step."""

    def __init__(self, num_rows: int = 1) -> None:
        self.num_tokens = 0
        self._ids_KL: IntArray = np.zeros((num_rows, 16), dtype=np.int64)
        self._logprobs_KL: FloatArray = np.zeros((num_rows, 16), dtype=np.float32)
        self._top: list[list[TopLogprobs]] = [[] for _ in range(num_rows)]

    def __len__(self) -> int:
        return len(self._ids_KL)

    @property
    def token_ids(self) -> IntArray:
        """``[K, L]``"""
        return self._ids_KL[:, : self.num_tokens]

    def extend(self, candidates: Candidates, chosen: IntArray) -> None:
        """The rows become the chosen candidates."""
        parents = candidates.rows[chosen]
        num_tokens = self.num_tokens
        if num_tokens == self._ids_KL.shape[1]:
            self._ids_KL = np.pad(self._ids_KL, ((0, 0), (0, num_tokens)))
            self._logprobs_KL = np.pad(self._logprobs_KL, ((0, 0), (0, num_tokens)))
        self._ids_KL = self._ids_KL[parents]
        self._logprobs_KL = self._logprobs_KL[parents]
        self._ids_KL[:, num_tokens] = candidates.token_ids[chosen]
        self._logprobs_KL[:, num_tokens] = candidates.logprobs[chosen]
        self._top = [self._top[row] + candidates.top_logprobs_of(row) for row in parents.tolist()]
        self.num_tokens += 1

    def hypothesis(self, row: int, score: float, finish_reason: FinishReason) -> Hypothesis:
        """The row as it is."""
        ids, logprobs = self.token_ids[row].copy(), self._logprobs_KL[row, : self.num_tokens].copy()
        top_logprobs = list(self._top[row])
        return Hypothesis(ids, score, finish_reason, logprobs, top_logprobs)

    def continued(self, candidates: Candidates, i: int, score: float, finish_reason: FinishReason) -> Hypothesis:
        """The output that candidate ``i`` makes of its row."""
        row = int(candidates.rows[i])
        before = self.hypothesis(row, score, finish_reason)
        return Hypothesis(
            np.append(before.token_ids, candidates.token_ids[i]),
            score,
            finish_reason,
            np.append(before.logprobs, candidates.logprobs[i]),
            before.top_logprobs + candidates.top_logprobs_of(row),
        )


class Pool:
    """The best ``size`` finished hypotheses, best first; the older of equal ones first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.hypotheses: list[Hypothesis] = []

    @property
    def is_full(self) -> bool:
        return len(self.hypotheses) == self.size

    @property
    def worst_score(self) -> float:
        return self.hypotheses[-1].score

    def accepts(self, score: float) -> bool:
        return not self.is_full or score > self.worst_score

    def add(self, hypothesis: Hypothesis) -> None:
        self.hypotheses = best_first([*self.hypotheses, hypothesis])[: self.size]


def best_first(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)


def num_agreed(rows: Sequence[IntArray]) -> int:
    """How many leading tokens all rows share.

    >>> num_agreed([np.array([4, 5, 6]), np.array([4, 5, 7, 8])])
    2
    """
    length = min(map(len, rows))
    if length == 0 or any(row[0] != rows[0][0] for row in rows):
        return 0  # the usual case: nothing new is settled
    same_L = np.logical_and.reduce([row[:length] == rows[0][:length] for row in rows])
    return length if same_L.all() else int(same_L.argmin())
