"""Beam search as a state machine: ranked candidates in, the next live rows out. Knows neither logits nor blocks.

The rules are those of transformers' `_beam_search`, the scores float32 as there. What differs, because there the
search goes on with rows that no longer mean anything: a continuation that is forbidden or that has ended is no row, so
that there may be fewer live rows than beams; and a slot that no hypothesis has filled is never answered. A diverse
search (``num_beam_groups`` above 1) follows transformers' `_group_beam_search` of 4.56 with `BeamSearchScorer`: each of
its lanes is a search of its own, with its own pool and float64 scores, which is led away from the tokens that
the lanes before it chose in the same step; a lane that is done leads away from nothing.

Dimension key
    K  live rows
    C  candidates, best first
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from server.engine.batch_inputs import IntArray
from server.engine.beam_pool import (
    Candidates,
    FloatArray,
    Histories,
    Hypothesis,
    Pool,
    TopLogprobs,
    best_first,
    num_agreed,
)
from server.engine.phrases import PhraseMatcher, PhraseWatch
from server.protocol import FinishReason, SamplingParams
from server.vocabulary import Vocabulary


@dataclass(slots=True)
class BeamStep:
    """The rows that go on: row ``i`` continues the old row ``parents[i]`` with ``token_ids[i]``."""

    parents: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    is_finite: bool = True
    """False where the logits held NaN or infinity, or every continuation was forbidden: the request has failed."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """Output tokens that every hypothesis still to be answered begins with, from where the last such piece ended."""

    token_ids: list[int]
    logprobs: list[float]
    top_logprobs: list[TopLogprobs]


_NOTHING: IntArray = np.zeros(0, dtype=np.int64)


class Lane:
    """One group of a diverse search; a plain search has one."""

    def __init__(self, params: SamplingParams, size: int, max_new_tokens: int) -> None:
        self.size = size
        self.is_done = False
        self.scores_K: FloatArray = np.zeros(1, dtype=np.float32)
        """Summed log-probabilities of the live rows."""
        self.histories = Histories()
        self.chosen_ids: IntArray = _NOTHING
        """The rows' last tokens, also those of the step in which the lane was done."""
        self.pool = Pool(size)
        self._max_new_tokens = max_new_tokens
        self._is_diverse = params.num_beam_groups > 1
        self._early_stopping = params.early_stopping
        self._length_penalty = params.length_penalty

    @property
    def num_rows(self) -> int:
        return 0 if self.is_done else len(self.histories)

    def take(self, candidates: Candidates) -> tuple[IntArray, IntArray]:
        """Finish the candidates that end and go on with the best others: the new rows' parents and tokens."""
        num_new = self.histories.num_tokens + 1
        is_last = num_new == self._max_new_tokens
        ends_C = candidates.ends if self._is_diverse or not is_last else np.ones(len(candidates), dtype=np.bool_)
        # Those below the top only stand in for rows that have ended: they may go on and may not finish.
        for i in np.flatnonzero(ends_C[: self.size]).tolist():
            self._finish(candidates, i, "stop" if candidates.ends[i] else "length")
        order_C = np.argsort(-candidates.scores, kind="stable")
        chosen = order_C[~ends_C[order_C]][: self.size]
        self.chosen_ids = candidates.token_ids[chosen]
        self.is_done = len(chosen) == 0 or self._cannot_improve(candidates, chosen, num_new)
        if is_last and not self.is_done:
            for i in chosen.tolist():
                self._finish(candidates, i, "length")
            self.is_done = True
        if self.is_done:
            return _NOTHING, _NOTHING
        self.histories.extend(candidates, chosen)
        self.scores_K = candidates.scores[chosen]
        return candidates.rows[chosen], candidates.token_ids[chosen]

    def give_up(self, finish_reason: FinishReason | None) -> tuple[IntArray, IntArray]:
        """No row can go on. With a reason they are finished as they are, if nothing better is."""
        self.is_done = True
        if finish_reason is not None and not self.pool.hypotheses:
            num_new = max(1, self.histories.num_tokens)
            for row, score in enumerate(self.scores_K.tolist()):
                self.pool.add(self.histories.hypothesis(row, self._normalised(score, num_new), finish_reason))
        return _NOTHING, _NOTHING

    def end_in_time(self) -> None:
        """The live rows end as they are, and are answered where they are better than what has ended before."""
        if self.is_done:
            return
        self.is_done = True
        for row, score in enumerate(self.scores_K.tolist()):
            score = self._normalised(score, self.histories.num_tokens)
            if self.pool.accepts(score):
                self.pool.add(self.histories.hypothesis(row, score, "max_time"))

    def _finish(self, candidates: Candidates, i: int, finish_reason: FinishReason) -> None:
        score = self._normalised(float(candidates.scores[i]), self.histories.num_tokens + 1)
        if self.pool.accepts(score):
            self.pool.add(self.histories.continued(candidates, i, score, finish_reason))

    def _cannot_improve(self, candidates: Candidates, chosen: IntArray, num_new: int) -> bool:
        """transformers' guess whether no row can still reach the pool."""
        if not self.pool.is_full:
            return False
        if self._early_stopping is True:
            return True
        best = candidates.scores.max() if self._is_diverse else candidates.scores[chosen[0]]
        to_the_end = self._early_stopping == "never" and self._length_penalty > 0
        attainable = self._normalised(float(best), self._max_new_tokens if to_the_end else num_new)
        return not attainable > self.pool.worst_score

    def _normalised(self, score: float, num_new: int) -> float:
        """The score over the length to the power of the penalty, in transformers' precision."""
        dtype = np.float64 if self._is_diverse else np.float32
        with np.errstate(all="ignore"):
            return float(dtype(score) / dtype(np.float64(num_new) ** self._length_penalty))


class BeamSearch:
    """One request's search, from its prompt's logits to its answer.

    `beam_ranking.advance` calls `take` for every lane and then `end_step`; nobody else changes it. Its state
    outlives a preemption.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        ending_ids: frozenset[int],
        max_tokens: int,
        num_prompt_tokens: int,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.params = params
        self.ending_ids = ending_ids
        size = params.num_beams // params.num_beam_groups
        max_new_tokens = max_tokens - num_prompt_tokens
        self.lanes = [Lane(params, size, max_new_tokens) for _ in range(params.num_beam_groups)]
        self.num_candidates = max(2, 1 + len(ending_ids)) * size
        """For each lane: enough that rows are left when the best ones end."""
        self.num_new_tokens = 0
        self.stop_watches = _watches(params.stop_strings, vocabulary, fold=False, num_lanes=len(self.lanes))
        """By lane and row."""
        self.ban_watches = _watches(params.banned_phrases, vocabulary, fold=True, num_lanes=len(self.lanes))
        self.rows_by_lane = [range(1) for _ in self.lanes]
        """Which of the request's rows are a lane's. The first step has one row, which every lane begins with."""
        self._step = BeamStep()
        self.is_within_step = False
        """Whether some lanes have taken a step's candidates and others have not: it cannot be made again."""
        self._num_agreed = 0

    @property
    def num_rows(self) -> int:
        return self.rows_by_lane[-1].stop

    @property
    def is_done(self) -> bool:
        return all(lane.is_done for lane in self.lanes)

    def chosen_before(self, lane: int) -> list[int]:
        """The tokens that the lanes before chose in this step."""
        return [id_ for before in self.lanes[:lane] for id_ in before.chosen_ids.tolist()]

    def take(self, lane: int, candidates: Candidates) -> None:
        """Advance one lane that is not done, in the order of lanes."""
        self.is_within_step = True
        if len(candidates):
            parents, token_ids = self.lanes[lane].take(candidates)
        else:
            parents, token_ids = self.lanes[lane].give_up("banned_phrase" if self.ban_watches else None)
        for watches in (self.stop_watches, self.ban_watches):
            if watches:
                watches[lane] = _followed(watches[lane], parents, token_ids)
        self._step.parents += (parents + self.rows_by_lane[lane].start).tolist()
        self._step.token_ids += token_ids.tolist()

    def end_step(self) -> BeamStep:
        """The step of all lanes together."""
        step, self._step = self._step, BeamStep()
        self.is_within_step = False
        for lane in self.lanes:
            lane.chosen_ids = _NOTHING
        stops = accumulate(lane.num_rows for lane in self.lanes)
        self.rows_by_lane = [range(stop - lane.num_rows, stop) for lane, stop in zip(self.lanes, stops, strict=True)]
        self.num_new_tokens += 1
        step.is_finite = not self.is_done or bool(self._returnable())
        return step

    def end_in_time(self) -> None:
        """The time is over after at least one token."""
        for lane in self.lanes:
            lane.end_in_time()

    def agreed(self) -> Agreed:
        """What has become certain since the last call: all live rows and all answerable hypotheses have it."""
        start = self._num_agreed
        live = [lane for lane in self.lanes if lane.num_rows]
        rows = [row for lane in live for row in lane.histories.token_ids]
        rows += [hypothesis.token_ids for hypothesis in self._returnable()]
        if not live:
            return Agreed([], [], [])
        self._num_agreed += num_agreed([row[start:] for row in rows])
        if self._num_agreed == start:
            return Agreed([], [], [])
        first = live[0].histories.hypothesis(0, 0.0, "stop")
        new = slice(start, self._num_agreed)
        return Agreed(first.token_ids[new].tolist(), first.logprobs[new].tolist(), first.top_logprobs[new])

    def results(self) -> list[Hypothesis]:
        """The answer of a search that is done: ``num_return_sequences`` hypotheses, best first.

        Where fewer exist, because the others were forbidden, the last is there several times.
        """
        hypotheses = self._returnable()
        return hypotheses + hypotheses[-1:] * (self.params.num_return_sequences - len(hypotheses))

    def _returnable(self) -> list[Hypothesis]:
        """The finished hypotheses that may be answered. The others cannot come back: none ever rises in this order."""
        finished = [hypothesis for lane in self.lanes for hypothesis in lane.pool.hypotheses]
        return best_first(finished)[: self.params.num_return_sequences]


def _watches(
    phrases: tuple[str, ...], vocabulary: Vocabulary | None, *, fold: bool, num_lanes: int
) -> list[list[PhraseWatch]]:
    if not phrases:
        return []
    assert vocabulary is not None, "rules on text need the vocabulary"
    matcher = PhraseMatcher(phrases, fold=fold)
    return [[PhraseWatch(matcher, vocabulary)] for _ in range(num_lanes)]


def _followed(watches: list[PhraseWatch], parents: IntArray, token_ids: IntArray) -> list[PhraseWatch]:
    """The watches of the new rows."""
    followed = [watches[parent].fork() for parent in parents.tolist()]
    for watch, token_id in zip(followed, token_ids.tolist(), strict=True):
        watch.push(token_id)
    return followed
