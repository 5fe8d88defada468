"""Turns logits into one token a row. Pure: the token depends on (seed, sample index, position, logits), no neighbour.

The rules are those of transformers' `generate`, in its order: logits processors, temperature, top_k, top_p, min_p,
typical_p. From what is left a token is drawn by inverting the cumulative distribution *in the order of token ids*: the
first token whose cumulated probability is above the row's uniform number. That order needs no sort of the
vocabulary, and two nearly equal logits that swap places (another batch, another kernel) change nothing.

A row that asks for nothing costs nothing. Greedy rows take a maximum; rows that keep nothing by rank are never sorted;
the others sort a window of the most likely tokens, and a wider one only if what they keep may reach over its edge.
Which of these a row takes depends on that row alone. Beam search will rank the processed logits of its rows here.

Dimension key
    S  sequences that sample
    R  rows of S that are treated alike
    V  vocabulary size
    W  candidates of a row
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.engine import reductions
from server.engine.batch_inputs import on_device
from server.engine.processors import order as processors_order
from server.engine.randomness import stream_keys, uniforms_at
from server.engine.sequence import Sequence
from server.protocol import SamplingParams

WINDOW_WIDTHS = (64, 256, 1024)
"""Candidates that are sorted at the first, second and third try; after that, all."""
WINDOW_ROOM = 8
"""A window is at least so much wider than top_k, for ties with the last token kept."""

GREEDY = 0
UNRANKED = -1
Method = int
"""How a row is chosen: `GREEDY`, `UNRANKED` (drawn without sorting) or the width of the window that is sorted."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One step's choices, in the order of the rows."""

    token_ids: list[int]
    is_finite: list[bool]
    """False where the logits held NaN or infinity, or every token was forbidden: the token means nothing."""
    logprobs: list[float]
    """Of the chosen token under the model's raw distribution; 0 where not asked for."""


def method_of(params: SamplingParams, vocab_size: int) -> Method:
    """How a row's token is chosen at the first try."""
    if not params.do_sample:
        return GREEDY
    if 0 < params.top_k < vocab_size:
        return _window(params.top_k + WINDOW_ROOM, vocab_size)
    if params.top_p < 1.0:
        return _window(1, vocab_size)
    return vocab_size if params.typical_p < 1.0 else UNRANKED


def _window(num_candidates: int, vocab_size: int) -> int:
    """The narrowest window that holds so many candidates."""
    widths = (width for width in WINDOW_WIDTHS if num_candidates <= width < vocab_size)
    return next(widths, vocab_size)


class Sampler:
    """Holds scratch memory and the last step's controls, nothing that a token depends on."""

    def __init__(self) -> None:
        self._scratch = torch.empty((0, 0))
        self._controls: dict[Method, Controls] = {}

    def sample(self, logits_SV: Tensor, sequences: Rows[Sequence]) -> Sampled:
        """Choose each row's next token. The logits are float32 and are changed in place."""
        vocab_size = logits_SV.shape[1]
        logprob_rows = [i for i, sequence in enumerate(sequences) if sequence.params.logprobs]
        processors = [sequence.processors for sequence in sequences]
        top_S = logits_SV.amax(-1)  # NaN and infinity survive a maximum
        if logprob_rows:
            raw_RV, log_top_R = self._raw_distribution(logits_SV, logprob_rows)
        if any(processors):
            if logprob_rows and len(logprob_rows) == len(sequences):
                raw_RV = raw_RV.clone()
            processors_order.apply(logits_SV, processors)
            top_S = top_S + logits_SV.amax(-1)

        # Token, whether it is settled, whether it is finite, its logprob: float64 holds all of them exactly.
        results = torch.ones((4, len(sequences)), dtype=torch.float64, device=logits_SV.device)
        results[2] = top_S.isfinite()
        rows_by_method: dict[Method, list[int]] = {}
        for i, sequence in enumerate(sequences):
            rows_by_method.setdefault(method_of(sequence.params, vocab_size), []).append(i)
        while rows_by_method:
            for method, rows in rows_by_method.items():
                token_R, settled_R = self._choose(method, _take(logits_SV, rows), [sequences[i] for i in rows])
                _put(results[0], rows, token_R)
                _put(results[1], rows, settled_R)
            if logprob_rows:
                chosen_R = _take(results[0], logprob_rows).long()
                _put(results[3], logprob_rows, _logprob(raw_RV, chosen_R, log_top_R))
            host = results.cpu().numpy()  # the one copy to the host, unless a window was too narrow
            rows_by_method = _unsettled(host, rows_by_method, vocab_size)
        return Sampled(host[0].astype(np.int64).tolist(), (host[2] == 1).tolist(), host[3].tolist())

    def _choose(self, method: Method, logits_RV: Tensor, sequences: Rows[Sequence]) -> tuple[Tensor, Tensor]:
        """Tokens, and whether they stand."""
        if method == GREEDY:
            return reductions.argmax(logits_RV), logits_RV.new_ones(len(sequences))
        controls = self._controls_of(method, sequences, logits_RV)
        uniform_R = controls.draw(sequences)
        if method == UNRANKED:
            probs_RV = self._softmax(logits_RV, controls.temperature_R)
            if controls.any_min_p:
                probs_RV.masked_fill_(probs_RV < controls.min_p_R[:, None] * probs_RV.amax(-1, keepdim=True), 0.0)
            return reductions.invert_cdf(probs_RV, uniform_R), logits_RV.new_ones(len(sequences))
        return self._choose_ranked(method, logits_RV, controls, uniform_R)

    def _choose_ranked(
        self, width: int, logits_RV: Tensor, controls: Controls, uniform_R: Tensor
    ) -> tuple[Tensor, Tensor]:
        is_whole = width >= logits_RV.shape[1]
        if is_whole:
            values_RW = logits_RV
            columns_RW = torch.arange(width, device=logits_RV.device).expand_as(logits_RV)
        else:
            values_RW, columns_RW = reductions.largest(logits_RV, width)
        # Rising values, and rising token ids among equal ones: transformers' order.
        sorted_RW, order_RW = values_RW.sort(dim=-1, stable=True)
        mass_R = None if is_whole or not controls.any_unbounded else self._mass(logits_RV, controls)
        weights_RW = kept_weights(sorted_RW, mass_R, controls)
        kept_edge_R = sorted_RW.masked_fill(weights_RW == 0, torch.inf).amin(-1)
        settled_R = torch.ones_like(kept_edge_R, dtype=torch.bool) if is_whole else kept_edge_R > sorted_RW[:, 0]
        if controls.any_typical_p:
            weights_RW = typical_weights(sorted_RW, weights_RW, controls)
        by_id_RW = torch.empty_like(weights_RW).scatter_(1, order_RW, weights_RW)
        drawn_R1 = reductions.invert_cdf(by_id_RW, uniform_R)[:, None]
        return columns_RW.gather(1, drawn_R1)[:, 0], settled_R

    def _controls_of(self, method: Method, sequences: Rows[Sequence], logits_RV: Tensor) -> Controls:
        """The rows' controls, made anew only when the rows change: a batch stays the same for many steps."""
        known = self._controls.get(method)
        if known is None or known.sequences != sequences:
            known = self._controls[method] = Controls.of(sequences, logits_RV.shape[1], logits_RV.device)
        return known

    def _mass(self, logits_RV: Tensor, controls: Controls) -> Tensor:
        """Weight of the whole vocabulary in rows without top_k, where the most likely token's weight is 1."""
        rows = controls.unbounded_rows
        mass_R = logits_RV.new_zeros(len(logits_RV))
        probs = self._softmax(_take(logits_RV, rows), controls.temperature_R[rows])
        mass_R[rows] = probs.amax(-1).reciprocal()
        return mass_R

    def _raw_distribution(self, logits_SV: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
        """The rows' logits before any processor, and the log-probability of each row's most likely token."""
        raw_RV = _take(logits_SV, rows)
        return raw_RV, self._softmax(raw_RV).amax(-1).log()

    def _softmax(self, logits_RV: Tensor, temperature_R: Tensor | None = None) -> Tensor:
        """Probabilities, in scratch memory: fresh pages for a whole vocabulary cost more than the arithmetic."""
        if self._scratch.shape[0] < len(logits_RV) or self._scratch.shape[1] != logits_RV.shape[1]:
            self._scratch = torch.empty_like(logits_RV)
        out = self._scratch[: len(logits_RV)]
        if temperature_R is not None:
            logits_RV = torch.div(logits_RV, temperature_R[:, None], out=out)
        return torch.softmax(logits_RV, -1, out=out)


@dataclass(frozen=True, slots=True)
class Controls:
    """Sampling parameters of the rows of one method, as tensors, and which rules occur at all."""

    sequences: Rows[Sequence]
    stream_keys: npt.NDArray[np.uint64]
    temperature_R: Tensor
    top_k_R: Tensor
    """int64; 0 keeps every token"""
    top_p_R: Tensor
    min_p_R: Tensor
    typical_p_R: Tensor
    any_top_k: bool
    any_top_p: bool
    any_min_p: bool
    any_typical_p: bool
    unbounded_rows: list[int]
    """Rows with top_p and without top_k, whose nucleus is measured by the whole vocabulary."""

    @property
    def any_unbounded(self) -> bool:
        return bool(self.unbounded_rows)

    @classmethod
    def of(cls, sequences: Rows[Sequence], vocab_size: int, device: torch.device) -> Controls:
        params = [sequence.params for sequence in sequences]
        rules = np.array([(p.temperature, p.top_k, p.top_p, p.min_p, p.typical_p) for p in params]).T
        rules[1, rules[1] >= vocab_size] = 0
        packed = on_device(np.ascontiguousarray(rules), device)
        temperature_R, _, top_p_R, min_p_R, typical_p_R = packed.float()
        return cls(
            sequences=sequences,
            stream_keys=stream_keys((p.seed for p in params), (s.sample_index for s in sequences)),
            temperature_R=temperature_R,
            top_k_R=packed[1].long(),
            top_p_R=top_p_R,
            min_p_R=min_p_R,
            typical_p_R=typical_p_R,
            any_top_k=bool((rules[1] > 0).any()),
            any_top_p=bool((rules[2] < 1).any()),
            any_min_p=bool((rules[3] > 0).any()),
            any_typical_p=bool((rules[4] < 1).any()),
            unbounded_rows=np.flatnonzero((rules[1] == 0) & (rules[2] < 1)).tolist(),
        )

    def draw(self, sequences: Rows[Sequence]) -> Tensor:
        """Each row's uniform number for its next position, float64."""
        uniform = uniforms_at(self.stream_keys, (sequence.num_output_tokens for sequence in sequences))
        return on_device(uniform, self.temperature_R.device)


def kept_weights(sorted_RW: Tensor, mass_R: Tensor | None, controls: Controls) -> Tensor:
    """Temperature, top_k, top_p and min_p on candidates of rising value: weights, 0 for what is removed.

    The most likely token has weight 1. ``mass_R`` is the whole vocabulary's weight for rows without top_k; None
    where the candidates are the whole vocabulary or every row has top_k.
    """
    scores_RW = sorted_RW / controls.temperature_R[:, None]
    weights_RW = (scores_RW - scores_RW[:, -1:]).exp()
    width = sorted_RW.shape[1]
    if controls.any_top_k:
        last_kept_R = (width - controls.top_k_R).clamp(0, width - 1)
        threshold_R1 = scores_RW.gather(1, last_kept_R[:, None])
        removed_RW = (scores_RW < threshold_R1) & (controls.top_k_R > 0)[:, None]
        weights_RW = weights_RW.masked_fill(removed_RW, 0.0)
    if controls.any_top_p:
        # transformers removes a token if those at or below it have at most 1 - top_p of the mass.
        up_to_RW = weights_RW.cumsum(-1)
        total_R = up_to_RW[:, -1]
        above_RW = total_R[:, None] - up_to_RW
        if mass_R is not None:
            total_R = torch.where(controls.top_k_R > 0, total_R, mass_R)
        removed_RW = above_RW >= (controls.top_p_R * total_R)[:, None]
        removed_RW &= (controls.top_p_R < 1.0)[:, None]
        removed_RW[:, -1] = False
        weights_RW = weights_RW.masked_fill(removed_RW, 0.0)
    if controls.any_min_p:
        weights_RW = weights_RW.masked_fill(weights_RW < controls.min_p_R[:, None], 0.0)
    return weights_RW


def typical_weights(sorted_RW: Tensor, weights_RW: Tensor, controls: Controls) -> Tensor:
    """typical_p: keep the tokens whose surprise is nearest to the entropy, up to the wanted mass."""
    probs_RW = weights_RW / weights_RW.sum(-1, keepdim=True)
    scores_RW = sorted_RW / controls.temperature_R[:, None]
    log_total_R1 = weights_RW.sum(-1, keepdim=True).log()
    log_probs_RW = scores_RW - scores_RW[:, -1:] - log_total_R1
    removed_RW = weights_RW == 0
    entropy_R1 = -(log_probs_RW * probs_RW).masked_fill(removed_RW, 0.0).sum(-1, keepdim=True)
    distance_RW = (-log_probs_RW - entropy_R1).abs().masked_fill(removed_RW, torch.inf)
    nearest_RW, order_RW = distance_RW.sort(dim=-1, stable=True)
    below_R1 = (probs_RW.gather(1, order_RW).cumsum(-1) < controls.typical_p_R[:, None]).sum(-1, keepdim=True)
    farthest_R1 = nearest_RW.gather(1, below_R1.clamp(max=sorted_RW.shape[1] - 1))
    is_asked_R1 = (controls.typical_p_R < 1.0)[:, None]
    return weights_RW.masked_fill((distance_RW > farthest_R1) & is_asked_R1, 0.0)


def _take(values_SV: Tensor, rows: list[int]) -> Tensor:
    """The rows; the tensor itself where they are all."""
    return values_SV if len(rows) == len(values_SV) else values_SV[rows]


def _put(target_S: Tensor, rows: list[int], values_R: Tensor) -> None:
    if len(rows) == len(target_S):
        target_S.copy_(values_R)
    else:
        target_S[rows] = values_R.to(target_S.dtype)


def _logprob(raw_RV: Tensor, chosen_R: Tensor, log_top_R: Tensor) -> Tensor:
    # The maximum goes first: a difference of near numbers is exact.
    return raw_RV.gather(1, chosen_R[:, None])[:, 0] - raw_RV.amax(-1) + log_top_R


def _unsettled(
    host: npt.NDArray[np.float64], rows_by_method: dict[Method, list[int]], vocab_size: int
) -> dict[Method, list[int]]:
    """Rows whose window was too narrow, by the next wider one."""
    wider: dict[Method, list[int]] = {}
    for method, rows in rows_by_method.items():
        if spilled := [i for i in rows if not host[1, i] and host[2, i]]:
            wider[_window(method + 1, vocab_size)] = spilled
    return wider
