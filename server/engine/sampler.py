"""Turns logits into one token a row. Pure: the token depends on (seed, sample index, position, logits), no neighbour.

The rules are those of transformers' `generate`, in its order: logits processors, then what `cutoffs` keeps. From that a
token is drawn by inverting the cumulative distribution *in the order of token ids*: the first token whose cumulated
probability is above the row's uniform number. That order needs no sort of the vocabulary, and two nearly equal logits
that swap places (another batch, another kernel) change nothing.

A row that asks for nothing costs nothing. Greedy rows take a maximum; rows that keep nothing by rank are never sorted;
the others sort a window of the most likely tokens. Beams are ranked elsewhere.

Dimension key
    S  sequences that sample
    R  rows of S that are treated alike
    V  vocabulary size
    W  candidates of a row
"""

from __future__ import annotations

import functools
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from operator import attrgetter
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.engine import cutoffs, native_draw, reductions
from server.engine.batch_inputs import on_device
from server.engine.controls import Controls, Exclusions
from server.engine.cutoffs import GREEDY, UNRANKED, UNSORTED, Candidates, Method, method_of, wider
from server.engine.draw_rules import keep_top_n_sigma
from server.engine.logprobs import RequestedLogprobs
from server.engine.native_draw import NativeDraws
from server.engine.processors import order as processors_order
from server.engine.randomness import stream_keys, uniforms_at
from server.engine.reductions import Scratch
from server.engine.row_index import RowIndex
from server.engine.sequence import Sequence
from server.native import kernels
from server.protocol import TokenLogprob

PROCESSORS = attrgetter("processors")


@dataclass(frozen=True, slots=True)
class Sampled:
    """One step's choices, in the order of the rows."""

    token_ids: list[int]
    is_finite: list[bool]
    """False where the logits held NaN or infinity, or every token was forbidden: the token means nothing."""
    logprobs: list[float]
    """Of the chosen token; 0 where not asked for."""
    top_logprobs: list[list[TokenLogprob]]
    """The most likely tokens, falling, or those that were asked for; empty where none were."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was drawn, and from what."""

    columns_R: Tensor
    candidates: Candidates

    def token_ids(self) -> Tensor:
        return self.candidates.token_ids(self.columns_R[:, None])[:, 0]


class Asked:
    """What rows ask for, made anew only when the rows change: a batch stays for many steps."""

    def __init__(self, sequences: Rows[Sequence], scratch: Scratch, vocab_size: int) -> None:
        params = [sequence.params for sequence in sequences]
        self.has_sigmas = any(p.top_n_sigma > 0.0 and p.do_sample for p in params)
        self.logprobs = RequestedLogprobs(params, scratch)
        self._vocab_size = vocab_size
        self._sequences = list(sequences)
        self._indices: dict[tuple[int, ...], RowIndex] = {}
        self._sample_indices = [sequence.sample_index for sequence in sequences]

    @functools.cached_property
    def native_draws(self) -> NativeDraws:
        """Made where the kernel draws."""
        return NativeDraws(self._sequences, self._vocab_size)

    def index(self, rows: list[int], device: torch.device) -> RowIndex:
        """Of some of the rows, made once."""
        key = tuple(rows)
        if key not in self._indices:
            self._indices[key] = self.passing_index(rows, device)
        return self._indices[key]

    def passing_index(self, rows: list[int], device: torch.device) -> RowIndex:
        """Of rows that differ from step to step, made anew: kept ones would become ever more."""
        return RowIndex.of(rows, len(self._sequences), device)

    def is_of(self, sequences: Rows[Sequence]) -> bool:
        return self._sequences == sequences and self._sample_indices == [s.sample_index for s in sequences]


class Sampler:
    """Holds scratch memory and the last step's controls, nothing that a token depends on."""

    def __init__(self) -> None:
        self._scratch = Scratch()
        self._draws: dict[Method, Draws] = {}
        self._asked: Asked | None = None

    def sample(self, logits_SV: Tensor, sequences: Rows[Sequence]) -> Sampled:
        """Choose each row's next token. The logits are float32 and are changed in place."""
        asked = self._asked
        if asked is None or not asked.is_of(sequences):
            asked = self._asked = Asked(sequences, self._scratch, logits_SV.shape[1])
        has_processors = any(map(PROCESSORS, sequences))
        asked.logprobs.take_raw(logits_SV, will_change=has_processors or asked.has_sigmas)
        is_finite_S = None
        if has_processors:
            is_finite_S = logits_SV.amax(-1).isfinite()  # NaN and infinity survive a maximum
            processors_order.apply(logits_SV, [sequence.processors for sequence in sequences])
        module = kernels.module()
        if module is not None and native_draw.can_draw(logits_SV):
            token_ids, is_finite = _draw_natively(module, logits_SV, asked)
            if is_finite_S is not None:
                is_finite = [was and still for was, still in zip(is_finite_S.tolist(), is_finite, strict=True)]
        else:
            token_ids, is_finite = self._draw_by_torch(logits_SV, sequences, asked, is_finite_S)
        return Sampled(token_ids, is_finite, *asked.logprobs.read(token_ids))

    def _draw_by_torch(
        self, logits_SV: Tensor, sequences: Rows[Sequence], asked: Asked, is_finite_S: Tensor | None
    ) -> tuple[list[int], list[bool]]:
        """As `_draw_natively`. ``is_finite_S`` says so of the logits before the processors, if there are any."""
        params = [sequence.params for sequence in sequences]
        still_finite_S = logits_SV.amax(-1).isfinite()
        sigma_rows = [i for i, p in enumerate(params) if p.top_n_sigma > 0.0 and p.do_sample]
        if sigma_rows:
            index = asked.index(sigma_rows, logits_SV.device)
            keep_top_n_sigma(logits_SV, index, [params[i].top_n_sigma for i in sigma_rows])
        if is_finite_S is not None:
            still_finite_S &= is_finite_S
        host = self._draw(logits_SV, sequences, asked, still_finite_S)
        return host[0].astype(np.int64).tolist(), (host[2] == 1).tolist()

    def _draw(
        self, logits_SV: Tensor, sequences: Rows[Sequence], asked: Asked, is_finite_S: Tensor
    ) -> npt.NDArray[np.float64]:
        """Each row's token, whether it is settled, whether it is finite: float64 holds all of them exactly."""
        vocab_size = logits_SV.shape[1]
        results = torch.ones((3, len(sequences)), dtype=torch.float64, device=logits_SV.device)
        results[2] = is_finite_S
        methods = [method_of(sequence.params, vocab_size) for sequence in sequences]
        unsettled = list(range(len(sequences)))
        index_of = asked.index
        while unsettled:
            results[1] = 1
            rows_by_method: dict[Method, list[int]] = {}
            for i in unsettled:
                rows_by_method.setdefault(methods[i], []).append(i)
            for method, rows in rows_by_method.items():
                is_told = asked.logprobs.wants_processed(rows)
                index = index_of(rows, logits_SV.device)
                choice = self._choose(method, index.take(logits_SV), [sequences[i] for i in rows], is_told=is_told)
                index.put(results[0], choice.token_ids())
                if choice.candidates.settled_R is not None:
                    index.put(results[1], choice.candidates.settled_R)
                if is_told:
                    asked.logprobs.take_drawn(
                        rows, choice.candidates.scores_RW, choice.columns_R, choice.candidates.columns_RW
                    )
            host = results.cpu().numpy()  # the one copy to the host, unless a window was too narrow
            unsettled = np.flatnonzero((host[1] == 0) & (host[2] == 1)).tolist()
            for i in unsettled:
                methods[i] = wider(methods[i], sequences[i].params, vocab_size)
            index_of = asked.passing_index
        return host

    def _choose(self, method: Method, logits_RV: Tensor, sequences: list[Sequence], *, is_told: bool) -> Choice:
        """One token a row. ``is_told`` says that the scores are asked for and may not be in scratch memory."""
        if method == GREEDY:
            return Choice(reductions.argmax(logits_RV), Candidates(logits_RV, None, None))
        draws = self._draws_of(method, sequences, logits_RV)
        uniform_R = draws.uniforms(logits_RV.device)
        if method == UNRANKED:
            scores_RV = draws.controls.scores(logits_RV, out=None if is_told else self._scratch.like(logits_RV))
            columns_R = reductions.invert_cdf(self._scratch.softmax(scores_RV), uniform_R)
            return Choice(columns_R, Candidates(scores_RV, None, None))
        if method == UNSORTED:
            candidates = cutoffs.whole(draws.controls.scores(logits_RV), draws.controls)
        else:
            candidates = cutoffs.window(method, logits_RV, draws.controls, self._scratch)
        candidates = draws.exclude(candidates)
        return Choice(reductions.invert_cdf(candidates.weights(), uniform_R), candidates)

    def _draws_of(self, method: Method, sequences: list[Sequence], logits_RV: Tensor) -> Draws:
        """What the rows need for every draw, made anew only when the rows change: a batch stays for many steps."""
        known = self._draws.get(method)
        if known is None or not known.are_of(sequences):
            known = self._draws[method] = Draws(sequences, logits_RV)
        return known


def _draw_natively(module: ModuleType, logits_SV: Tensor, asked: Asked) -> tuple[list[int], list[bool]]:
    """Each row's token and whether it means anything."""
    rows = asked.logprobs.processed_rows
    scores_KV = torch.empty((len(rows), logits_SV.shape[1])) if rows else logits_SV
    told = dict(zip(rows, scores_KV, strict=True)) if rows else {}
    token_ids_S = asked.native_draws.draw(module, logits_SV, told)
    token_ids: list[int] = np.maximum(token_ids_S, 0).tolist()
    if rows:
        asked.logprobs.take_drawn(rows, scores_KV, torch.tensor([token_ids[i] for i in rows]), None)
    return token_ids, (token_ids_S >= 0).tolist()


class Draws:
    """What the rows of one method need for every draw."""

    def __init__(self, sequences: list[Sequence], logits_RV: Tensor) -> None:
        params = [sequence.params for sequence in sequences]
        self.sequences = sequences
        self.controls = Controls.of(params, logits_RV)
        self._sample_indices = [sequence.sample_index for sequence in sequences]
        self._keys = stream_keys((p.seed for p in params), self._sample_indices)
        self._exclusions = Exclusions.of(params, self._keys, logits_RV.device)

    def are_of(self, sequences: list[Sequence]) -> bool:
        return self.sequences == sequences and self._sample_indices == [s.sample_index for s in sequences]

    @property
    def _positions(self) -> list[int]:
        return [sequence.num_output_tokens for sequence in self.sequences]

    def uniforms(self, device: torch.device) -> Tensor:
        """Each row's uniform number for its next position, float64."""
        return on_device(uniforms_at(self._keys, self._positions), device)

    def exclude(self, candidates: Candidates) -> Candidates:
        """XTC, in the rows that ask for it, where their numbers for this position say so."""
        if self._exclusions is None:
            return candidates
        return replace(candidates, scores_RW=self._exclusions.apply(candidates.scores_RW, self._positions))
