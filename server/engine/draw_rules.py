"""The draw's rules one by one, as transformers' warpers have them.

A rule takes scores (logits over the temperature) in any order and gives minus infinity to what it leaves out. What
becomes of a row depends on that row alone.

Dimension key
    K  rows that ask for the rule
    R  rows
    S  rows of the step
    V  vocabulary size
    W  candidates of a row
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from server.engine import reductions
from server.engine.batch_inputs import on_device
from server.engine.row_index import RowIndex

NEAREST_WIDTHS = (1024, 8192)
"""Tokens that typical_p sorts at the first and second try; after that, all."""
HUGE = 1e30


def keep_top_n_sigma(logits_SV: Tensor, rows: RowIndex, num_sigmas: list[float]) -> None:
    """Leave out, in place, logits that are more than so many standard deviations below the greatest of their row.

    Before the temperature, which changes nothing of it.
    """
    logits_RV = rows.take(logits_SV)
    top_R1 = logits_RV.amax(-1, keepdim=True)
    below_RV = logits_RV - top_R1
    num_sigmas_R1 = on_device(np.array(num_sigmas)[:, None], logits_SV.device)
    removed_RV = logits_RV - top_R1 < -(num_sigmas_R1 * _deviation(below_RV)).float()
    logits_RV.masked_fill_(removed_RV, -torch.inf)
    if not rows.is_whole:
        rows.put(logits_SV, logits_RV)


def _deviation(values_RV: Tensor) -> Tensor:
    """The standard deviation of each row's finite values, float64, ``[R, 1]``. The values are written over."""
    is_forbidden_RV = values_RV == -torch.inf
    count_R1 = values_RV.shape[1] - is_forbidden_RV.sum(-1, keepdim=True)
    mean_R1 = (reductions.total(values_RV.masked_fill_(is_forbidden_RV, 0.0))[:, None] / count_R1).float()
    spread_RV = values_RV.sub_(mean_R1).masked_fill_(is_forbidden_RV, 0.0)
    return (reductions.total(spread_RV.square_())[:, None] / count_R1).sqrt()


def min_p(scores_KW: Tensor, value_K1: Tensor, num_kept: int) -> Tensor:
    """Leave out what is less than so many times as likely as the most likely token."""
    top_K1 = scores_KW.amax(-1, keepdim=True)
    return _leave_out(scores_KW, (scores_KW - top_K1).exp() < value_K1, num_kept)


def typical_p(scores_KW: Tensor, value_K1: Tensor, num_kept: int) -> Tensor:
    """Keep the tokens whose surprise is nearest to the entropy, up to the wanted mass."""
    logprobs_KW = scores_KW.log_softmax(-1)
    probs_KW = logprobs_KW.exp()
    distance_KW = (-logprobs_KW - _entropy(logprobs_KW, probs_KW)).abs()
    farthest_K1 = _farthest(distance_KW, probs_KW, value_K1, num_kept)
    return scores_KW.masked_fill(distance_KW > farthest_K1, -torch.inf)


def epsilon_cutoff(scores_KW: Tensor, value_K1: Tensor, num_kept: int) -> Tensor:
    """Leave out what is less likely than the value."""
    return _leave_out(scores_KW, scores_KW.softmax(-1) < value_K1, num_kept)


def eta_cutoff(scores_KW: Tensor, value_K1: Tensor, num_kept: int) -> Tensor:
    """As `epsilon_cutoff`, with a bound that falls with the entropy."""
    logprobs_KW = scores_KW.log_softmax(-1)
    probs_KW = logprobs_KW.exp()
    eta_K1 = torch.minimum(value_K1, value_K1.sqrt() * (-_entropy(logprobs_KW, probs_KW)).exp())
    return _leave_out(scores_KW, probs_KW < eta_K1, num_kept)


def exclude_top_choices(scores_KW: Tensor, threshold_K1: Tensor, num_kept: int) -> Tensor:
    """XTC: leave out the tokens of at least this probability, but for the least likely of them."""
    probs_KW = scores_KW.softmax(-1)
    # A threshold of 0 asks for every token that is left, and not for those that are forbidden.
    is_above_KW = (probs_KW >= threshold_K1) & (scores_KW > -torch.inf)
    least_K1 = probs_KW.masked_fill(~is_above_KW, torch.inf).argmin(-1, keepdim=True)
    left_KW = scores_KW.masked_fill(is_above_KW.scatter_(1, least_K1, value=False), -torch.inf)
    if num_kept == 1:
        return left_KW
    is_enough_K1 = (left_KW > -torch.inf).sum(-1, keepdim=True) >= num_kept
    return torch.where(is_enough_K1, left_KW, scores_KW)


def _leave_out(scores_KW: Tensor, removed_KW: Tensor, num_kept: int) -> Tensor:
    """Leave out what is removed, but none of the most likely ``num_kept`` and what equals the last of them."""
    if num_kept == 1:
        least_K1 = scores_KW.amax(-1, keepdim=True)
    else:
        values, _ = reductions.largest(scores_KW, min(num_kept, scores_KW.shape[1]))
        least_K1 = values.amin(-1, keepdim=True)
    return scores_KW.masked_fill(removed_KW & (scores_KW < least_K1), -torch.inf)


def _entropy(logprobs_KW: Tensor, probs_KW: Tensor) -> Tensor:
    """In nats, ``[K, 1]``."""
    # What cannot be has no surprise: a bound, for minus infinity times 0 is no number.
    surprise_KW = logprobs_KW.clamp(min=-HUGE).mul_(probs_KW)
    return -reductions.total(surprise_KW)[:, None].float()


def _farthest(
    distance_KW: Tensor,
    probs_KW: Tensor,
    mass_K1: Tensor,
    num_kept: int,
    widths: tuple[int, ...] = NEAREST_WIDTHS,
) -> Tensor:
    """The distance up to which tokens have the mass and are at least ``num_kept``, ``[K, 1]``."""
    # To wait for a GPU's answer would cost more than the sort.
    if not widths or 4 * widths[0] > distance_KW.shape[1] or not distance_KW.is_cpu:
        return _farthest_sorted(distance_KW, probs_KW, mass_K1, num_kept)
    # A few nearest ones have it nearly always: no sort of the vocabulary then.
    negative_KW, columns_KW = reductions.largest(-distance_KW, widths[0])
    near_probs_KW = probs_KW.gather(1, columns_KW)
    farthest_K1 = _farthest_sorted(-negative_KW, near_probs_KW, mass_K1, num_kept)
    is_short_K = near_probs_KW.sum(-1) <= mass_K1[:, 0] + 1e-4
    if is_short_K.any():
        rest = (distance_KW[is_short_K], probs_KW[is_short_K], mass_K1[is_short_K])
        farthest_K1[is_short_K] = _farthest(*rest, num_kept, widths[1:])
    return farthest_K1


def _farthest_sorted(distance_KW: Tensor, probs_KW: Tensor, mass_K1: Tensor, num_kept: int) -> Tensor:
    nearest_KW, order_KW = distance_KW.sort(dim=-1, stable=True)
    num_below_K1 = (probs_KW.gather(1, order_KW).cumsum(-1) < mass_K1).sum(-1, keepdim=True)
    return nearest_KW.gather(1, num_below_K1.clamp(min=num_kept - 1, max=distance_KW.shape[1] - 1))


class DrawRule(NamedTuple):
    """A rule as a sequence asks for it: by the field of `SamplingParams` of its name."""

    name: str
    apply: Callable[[Tensor, Tensor, int], Tensor]
    """Of scores, values and how many tokens stay at least."""
    neutral: float


MIN_P = DrawRule("min_p", min_p, 0.0)
LATER = (
    DrawRule("typical_p", typical_p, 1.0),
    DrawRule("epsilon_cutoff", epsilon_cutoff, 0.0),
    DrawRule("eta_cutoff", eta_cutoff, 0.0),
)
"""Rules after those that bound a window, in order."""

CONTROLS = (
    "do_sample",
    "temperature",
    "top_n_sigma",
    "top_k",
    "top_p",
    MIN_P.name,
    *(rule.name for rule in LATER),
    "xtc_threshold",
    "excludes_top",
    "uniform",
)
"""What the CPU kernel needs of a row, in the order of ``Control`` in `native/src/sampling.h`, which has the rules."""
