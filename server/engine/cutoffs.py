"""What the draw's rules leave of a row: transformers' warpers in its order, on as few candidates as will do.

Most rows need only a window of their most likely tokens, and a wider one if what they keep may reach over its edge.
Which of these a row takes, and what stays of it, depends on that row alone.

Dimension key
    R  rows that are treated alike
    K  rows of R that ask for something
    V  vocabulary size
    W  candidates of a row
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine import reductions
from server.engine.controls import Controls, Exclusions, Rule
from server.engine.draw_rules import LATER, keep_top_n_sigma
from server.engine.randomness import stream_keys
from server.engine.reductions import ROOM_FOR_TIES, Scratch
from server.engine.row_index import RowIndex
from server.protocol import SamplingParams

WINDOW_WIDTHS = (64, 256, 1024)
"""Candidates that are sorted at the first, second and third try; after that, all."""

GREEDY = 0
UNRANKED = -1
UNSORTED = -2
Method = int
"""How a row is chosen: `GREEDY`, `UNRANKED` (drawn from all tokens), `UNSORTED` (rules look at all tokens, none at
their ranks), or the width of the window that is sorted."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the rules leave of each row."""

    scores_RW: Tensor
    """In the order of token ids; minus infinity for what was left out."""
    columns_RW: Tensor | None
    """Their token ids; None where they are the whole vocabulary."""
    settled_R: Tensor | None
    """Whether the row's window was wide enough; else its candidates mean nothing. None where all were looked at."""

    def weights(self) -> Tensor:
        """Proportional to the probabilities; 0 for what was left out."""
        return (self.scores_RW - self.scores_RW.amax(-1, keepdim=True)).exp()

    def token_ids(self, columns_RN: Tensor) -> Tensor:
        """Of columns of the scores."""
        return columns_RN if self.columns_RW is None else self.columns_RW.gather(1, columns_RN)


def method_of(params: SamplingParams, vocab_size: int) -> Method:
    """How a row's token is chosen at the first try."""
    if not params.do_sample:
        return GREEDY
    if 0 < params.top_k < vocab_size:
        return _window(params.top_k + ROOM_FOR_TIES, vocab_size)
    if params.top_p < 1.0 or params.min_p > 0.0:
        return wider(0, params, vocab_size)
    is_plain = not params.xtc_probability and all(getattr(params, rule.name) == rule.neutral for rule in LATER)
    return UNRANKED if is_plain else UNSORTED


def wider(method: Method, params: SamplingParams, vocab_size: int) -> Method:
    """The method after one whose window was too narrow."""
    width = _window(method + 1, vocab_size)
    is_ranked = 0 < params.top_k < vocab_size or params.top_p < 1.0
    return width if width < vocab_size or is_ranked else UNSORTED


def _window(num_candidates: int, vocab_size: int) -> int:
    """The narrowest window that holds so many candidates."""
    widths = (width for width in WINDOW_WIDTHS if num_candidates <= width < vocab_size)
    return next(widths, vocab_size)


def whole(scores_RV: Tensor, controls: Controls) -> Candidates:
    """What min_p and the rules after it leave of all tokens, for rows without top_k and top_p."""
    return Candidates(apply_later(_apply(controls.min_p, scores_RV, controls), controls), None, None)


def window(width: int, logits_RV: Tensor, controls: Controls, scratch: Scratch) -> Candidates:
    """What the rules leave of the ``width`` most likely tokens."""
    is_whole = width >= logits_RV.shape[1]
    if is_whole:
        logits_RW = logits_RV
        columns_RW = torch.arange(width, device=logits_RV.device).expand_as(logits_RV)
    else:
        logits_RW, columns_RW = reductions.largest(logits_RV, width)
    mass_R = None if is_whole else _mass(logits_RV, controls, scratch)
    # Rising values, and rising token ids among equal ones: transformers' order.
    sorted_RW, order_RW = logits_RW.sort(dim=-1, stable=True)
    scores_RW = _keep_ranked(controls.scores(sorted_RW), controls, mass_R)
    scores_RW = _apply(controls.min_p, scores_RW, controls)
    kept_edge_R = sorted_RW.masked_fill(scores_RW == -torch.inf, torch.inf).amin(-1)
    settled_R = None if is_whole else kept_edge_R > sorted_RW[:, 0]
    by_id_RW = torch.empty_like(scores_RW).scatter_(1, order_RW, scores_RW)
    return Candidates(apply_later(by_id_RW, controls), columns_RW, settled_R)


def apply_later(scores_RW: Tensor, controls: Controls) -> Tensor:
    """The rules that look at what those before them left, wherever it stands."""
    for rule in controls.later:
        scores_RW = _apply(rule, scores_RW, controls)
    return scores_RW


def apply_full(
    logprobs_RV: Tensor, params: SamplingParams, min_tokens_to_keep: int, position: int | None = None
) -> Tensor:
    """The draw's rules on whole rows that all ask for the same, as transformers applies them to beams.

    Temperature is in the result, minus infinity where a token was left out. ``position`` counts the new tokens before
    the one that is drawn; XTC asks for it.
    """
    scores_RV = _apply_full(logprobs_RV, params, min_tokens_to_keep)
    keys = stream_keys([params.seed] * len(logprobs_RV), [0] * len(logprobs_RV))
    exclusions = Exclusions.of([params] * len(logprobs_RV), keys, logprobs_RV.device)
    if exclusions is None:
        return scores_RV
    assert position is not None
    return exclusions.apply(scores_RV, [position] * len(logprobs_RV), min_tokens_to_keep)


def _apply_full(logprobs_RV: Tensor, params: SamplingParams, min_tokens_to_keep: int) -> Tensor:
    vocab_size = logprobs_RV.shape[1]
    if params.top_n_sigma > 0.0:
        logprobs_RV = logprobs_RV.clone()
        everyone = RowIndex.of(range(len(logprobs_RV)), len(logprobs_RV), logprobs_RV.device)
        keep_top_n_sigma(logprobs_RV, everyone, [params.top_n_sigma] * len(logprobs_RV))
    controls = Controls.of([params] * len(logprobs_RV), logprobs_RV, min_tokens_to_keep)
    method = method_of(params, vocab_size)
    scratch = Scratch()
    while method > 0:
        candidates = window(method, logprobs_RV, controls, scratch)
        if candidates.settled_R is None or candidates.settled_R.all():
            break
        method = wider(method, params, vocab_size)
    else:
        return whole(controls.scores(logprobs_RV), controls).scores_RW
    scores_RV = torch.full_like(logprobs_RV, -torch.inf)
    assert candidates.columns_RW is not None
    return scores_RV.scatter_(1, candidates.columns_RW, candidates.scores_RW)


def _keep_ranked(scores_RW: Tensor, controls: Controls, mass_R: Tensor | None) -> Tensor:
    """top_k and top_p, on candidates of rising score. ``mass_R`` is as of `_mass`."""
    width, num_kept = scores_RW.shape[1], controls.min_tokens_to_keep
    if controls.any_top_k:
        last_kept_R = (width - controls.top_k_R).clamp(0, width - 1)
        threshold_R1 = scores_RW.gather(1, last_kept_R[:, None])
        removed_RW = (scores_RW < threshold_R1) & (controls.top_k_R > 0)[:, None]
        scores_RW = scores_RW.masked_fill(removed_RW, -torch.inf)
    if not controls.any_top_p:
        return scores_RW
    # transformers removes a token if those at or below it have at most 1 - top_p of the mass.
    up_to_RW = (scores_RW - scores_RW[:, -1:]).exp().cumsum(-1)
    total_R = up_to_RW[:, -1]
    above_RW = total_R[:, None] - up_to_RW
    if mass_R is not None:
        total_R = torch.where(controls.top_k_R > 0, total_R, mass_R)
    removed_RW = above_RW >= (controls.top_p_R * total_R)[:, None]
    removed_RW &= (controls.top_p_R < 1.0)[:, None]
    removed_RW[:, -num_kept:] = False
    return scores_RW.masked_fill(removed_RW, -torch.inf)


def _mass(logits_RV: Tensor, controls: Controls, scratch: Scratch) -> Tensor | None:
    """Weight of the whole vocabulary in rows with top_p and without top_k, where the most likely token's is 1."""
    rows = controls.unbounded_rows
    if rows is None:
        return None
    logits_KV, controls = rows.take(logits_RV), controls.unbounded()
    mass_K = scratch.softmax(controls.scores(logits_KV, out=scratch.like(logits_KV))).amax(-1).reciprocal()
    mass_R = logits_RV.new_zeros(len(logits_RV))
    rows.put(mass_R, mass_K)
    return mass_R


def _apply(rule: Rule | None, scores_RW: Tensor, controls: Controls) -> Tensor:
    """The scores after a rule; the same tensor may be changed."""
    if rule is None:
        return scores_RW
    scores_KW = rule.rule.apply(rule.rows.take(scores_RW), rule.value_K1, controls.min_tokens_to_keep)
    if rule.rows.is_whole:
        return scores_KW
    rule.rows.put(scores_RW, scores_KW)
    return scores_RW
