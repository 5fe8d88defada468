"""Exact reductions over rows as wide as a vocabulary, level by level: blocks first, then inside the few that matter.

torch's argmax, topk and sort over a whole row do not vectorise on the CPU and take most of a step's overhead; a
maximum or a sum over blocks does. Works on any device and any width; a row's result depends on that row alone.
Where there are CPU kernels, those that are needed with them as well are kernels.

Dimension key
    R  rows
    V  width of a row
    N  blocks of a row
    W  candidates of a row
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from server.native import kernels

BLOCK = 64
STRIDE = 8

ROOM_FOR_TIES = 8
"""By so many candidates a window is wider than what is asked of it, for those that equal the last."""


class Scratch:
    """Memory for one tensor as wide as a vocabulary: fresh pages for it cost more than the arithmetic."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def like(self, values_RV: Tensor) -> Tensor:
        """Memory of the same shape, until the next call."""
        if self._memory.numel() < values_RV.numel() or self._memory.device != values_RV.device:
            self._memory = torch.empty(values_RV.numel(), dtype=values_RV.dtype, device=values_RV.device)
        return self._memory[: values_RV.numel()].view(values_RV.shape)

    def softmax(self, scores_RV: Tensor) -> Tensor:
        """Probabilities, until the next call. The scores may be in the same memory."""
        return torch.softmax(scores_RV, -1, out=self.like(scores_RV))


def argmax(values_RV: Tensor) -> Tensor:
    """Index of each row's greatest value, the lowest of equal ones."""
    maxima_RN = _reduce_blocks(values_RV, torch.amax)
    columns, inside = _block_columns(maxima_RN.argmax(-1), values_RV)
    block = values_RV.gather(1, columns).masked_fill_(~inside, -torch.inf)
    return columns.gather(1, block.argmax(-1, keepdim=True))[:, 0]


def largest(values_RV: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
    """The ``num_candidates`` greatest values of each row and their columns, in the order of columns.

    Which of equal values at the lower edge are among them is left open.
    """
    module = kernels.module()
    if module is not None and _is_dense(values_RV):
        return _largest_natively(module, values_RV, num_candidates)
    values_RW, columns_RW = _largest(values_RV, num_candidates)
    columns_RW, order = columns_RW.sort(dim=-1)
    return values_RW.gather(1, order), columns_RW


def _largest_natively(module: ModuleType, values_RV: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
    values_RW = values_RV.new_empty((len(values_RV), num_candidates))
    columns_RW = torch.empty(values_RW.shape, dtype=torch.int64)
    module.largest(values_RV.data_ptr(), *values_RV.shape, num_candidates, values_RW.data_ptr(), columns_RW.data_ptr())
    return values_RW, columns_RW


def _largest(values_RV: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
    """As `largest`, in any order."""
    num_columns = values_RV.shape[1]
    num_groups = num_columns // STRIDE
    if num_groups <= 2 * num_candidates:
        values_RW, columns_RW = values_RV.topk(num_candidates, dim=-1, sorted=False)
        return values_RW, columns_RW
    # Group g holds columns g, g + num_groups, ...: the winners lie in the groups with the greatest maxima.
    main = num_groups * STRIDE
    _, groups = _largest(values_RV[:, :main].view(-1, STRIDE, num_groups).amax(1), num_candidates)
    columns = (groups[:, None, :] + torch.arange(0, main, num_groups, device=values_RV.device)[:, None]).flatten(1)
    if main < num_columns:
        rest = torch.arange(main, num_columns, device=values_RV.device).expand(len(values_RV), -1)
        columns = torch.cat([columns, rest], dim=1)
    values_RW, picked = values_RV.gather(1, columns).topk(num_candidates, dim=-1, sorted=False)
    return values_RW, columns.gather(1, picked)


def invert_cdf(weights_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """The first column of each row whose cumulated weight is above ``uniform`` of the row's total.

    Weights need not add to 1. ``uniform_R`` is float64 in [0, 1).
    """
    num_columns = weights_RV.shape[1]
    if num_columns <= 2 * BLOCK:
        cumulated = weights_RV.double().cumsum(-1)
        return _first_above(cumulated, uniform_R * cumulated[:, -1], weights_RV)
    sums_RN = _reduce_blocks(weights_RV, torch.sum).double()
    cumulated_RN = sums_RN.cumsum(-1)
    target_R = uniform_R * cumulated_RN[:, -1]
    block_R = _first_above(cumulated_RN, target_R, sums_RN)
    before_R = (cumulated_RN - sums_RN).gather(1, block_R[:, None])[:, 0]
    columns, inside = _block_columns(block_R, weights_RV)
    weights = weights_RV.gather(1, columns).masked_fill_(~inside, 0.0)
    first_R = _first_above(weights.double().cumsum(-1), target_R - before_R, weights)
    return columns.gather(1, first_R[:, None])[:, 0]


def top_and_its_logprob(logits_RV: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor]:
    """Each row's greatest logit and the log-probability of its token, ``[R, 1]``. NaN where a row is not finite."""
    module = kernels.module()
    if module is None or not _is_dense(logits_RV):
        return logits_RV.amax(-1, keepdim=True), scratch.softmax(logits_RV).amax(-1, keepdim=True).log()
    top_R1, mass_R1 = torch.empty((2, len(logits_RV), 1))
    module.log_masses(logits_RV.data_ptr(), *logits_RV.shape, top_R1.data_ptr(), mass_R1.data_ptr())
    return top_R1, -mass_R1


def total(values_RV: Tensor) -> Tensor:
    """Each row's sum, float64: block by block, for torch splits a lone row among its threads and others not."""
    return _reduce_blocks(values_RV, torch.sum).sum(-1, dtype=torch.float64)


def _is_dense(values_RV: Tensor) -> bool:
    """Whether a kernel can read the rows."""
    return values_RV.is_cpu and values_RV.dtype == torch.float32 and values_RV.is_contiguous()


def _first_above(cumulated: Tensor, target_R: Tensor, weights: Tensor) -> Tensor:
    """First index with ``cumulated > target``; the last of positive weight where rounding leaves none."""
    first_R = (cumulated <= target_R[:, None]).sum(-1)
    indices = torch.arange(weights.shape[1], device=weights.device)
    return torch.minimum(first_R, ((weights > 0) * indices).amax(-1))


def _reduce_blocks(values_RV: Tensor, reduce: Callable[[Tensor, int], Tensor]) -> Tensor:
    """``reduce`` over each block of a row; the last block may be short."""
    num_blocks, num_rest = divmod(values_RV.shape[1], BLOCK)
    parts = []
    if num_blocks:
        main = values_RV[:, : num_blocks * BLOCK].view(-1, num_blocks, BLOCK)
        parts.append(reduce(main, -1))
    if num_rest:
        parts.append(reduce(values_RV[:, num_blocks * BLOCK :], -1)[:, None])
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def _block_columns(block_R: Tensor, values_RV: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of one block a row, and which of them exist; those that do not name the last column."""
    columns = block_R[:, None] * BLOCK + torch.arange(BLOCK, device=values_RV.device)
    last = values_RV.shape[1] - 1
    return columns.clamp(max=last), columns <= last
