"""The draw's parameters of several rows as tensors, and which rows ask for which rule.

Dimension key
    R  rows that are treated alike
    K  rows of R that ask for something
    W  candidates of a row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.engine.batch_inputs import on_device
from server.engine.draw_rules import LATER, MIN_P, DrawRule, exclude_top_choices
from server.engine.randomness import XTC_STREAM, side_keys, uniforms_at
from server.engine.row_index import RowIndex
from server.protocol import SamplingParams

LEAST_TEMPERATURE = 1e-20
"""Below it a logit over the temperature may be infinite; the greatest is taken away first then."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule and the rows that ask for it."""

    rule: DrawRule
    rows: RowIndex
    value_K1: Tensor


@dataclass(frozen=True, slots=True)
class Controls:
    """The draw's parameters of rows of one method, as tensors: made anew only when the rows change."""

    temperature_R1: Tensor
    cold_R1: Tensor | None
    """Rows with a temperature below `LEAST_TEMPERATURE`, if any."""
    top_k_R: Tensor
    """int64; 0 keeps every token"""
    top_p_R: Tensor
    any_top_k: bool
    any_top_p: bool
    unbounded_rows: RowIndex | None
    """Rows with top_p and without top_k, whose nucleus is measured by the whole vocabulary; None without such rows."""
    min_p: Rule | None
    later: tuple[Rule, ...]
    """Rules after those that bound a window."""
    min_tokens_to_keep: int

    @classmethod
    def of(cls, params: Sequence[SamplingParams], logits_RV: Tensor, min_tokens_to_keep: int = 1) -> Controls:
        vocab_size, device = logits_RV.shape[1], logits_RV.device
        least, greatest = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
        temperature = np.array([min(max(p.temperature, least), greatest) for p in params])
        is_cold = temperature < LEAST_TEMPERATURE
        top_k = np.array([p.top_k if 0 < p.top_k < vocab_size else 0 for p in params], dtype=np.int64)
        top_k[top_k > 0] = np.maximum(top_k[top_k > 0], min_tokens_to_keep)
        top_p = np.array([p.top_p for p in params])
        packed = on_device(np.stack([temperature, top_k, top_p]), device)

        def asked(rule: DrawRule) -> Rule | None:
            values = [getattr(p, rule.name) for p in params]
            rows = [i for i, value in enumerate(values) if value != rule.neutral]
            value_K1 = np.array([[values[i]] for i in rows], dtype=np.float32)
            return Rule(rule, RowIndex.of(rows, len(params), device), on_device(value_K1, device)) if rows else None

        unbounded = np.flatnonzero((top_k == 0) & (top_p < 1)).tolist()
        return cls(
            temperature_R1=packed[0].float()[:, None],
            cold_R1=on_device(is_cold, device)[:, None] if is_cold.any() else None,
            top_k_R=packed[1].long(),
            top_p_R=packed[2].float(),
            any_top_k=bool((top_k > 0).any()),
            any_top_p=bool((top_p < 1).any()),
            unbounded_rows=RowIndex.of(unbounded, len(params), device) if unbounded else None,
            min_p=asked(MIN_P),
            later=tuple(found for rule in LATER if (found := asked(rule)) is not None),
            min_tokens_to_keep=min_tokens_to_keep,
        )

    def scores(self, logits_RV: Tensor, out: Tensor | None = None) -> Tensor:
        """Logits over the temperature."""
        if self.cold_R1 is not None:
            logits_RV = logits_RV - torch.where(self.cold_R1, logits_RV.amax(-1, keepdim=True), 0.0)
        return torch.div(logits_RV, self.temperature_R1, out=out)

    def unbounded(self) -> Controls:
        """Those of the ``unbounded_rows`` only, as far as their temperature."""
        rows = self.unbounded_rows
        assert rows is not None
        cold_K1 = None if self.cold_R1 is None else rows.take(self.cold_R1)
        return replace(self, temperature_R1=rows.take(self.temperature_R1), cold_R1=cold_K1)


@dataclass(frozen=True, slots=True)
class Exclusions:
    """XTC of the rows that ask for it."""

    rows: list[int]
    threshold_K1: Tensor
    probabilities: npt.NDArray[np.float64]
    keys: npt.NDArray[np.uint64]

    @classmethod
    def of(
        cls, params: Sequence[SamplingParams], keys: npt.NDArray[np.uint64], device: torch.device
    ) -> Exclusions | None:
        """``keys`` are the rows' `randomness.stream_keys`."""
        rows = [i for i, p in enumerate(params) if p.xtc_probability > 0.0]
        if not rows:
            return None
        thresholds = np.array([[params[i].xtc_threshold] for i in rows], dtype=np.float32)
        probabilities = np.array([params[i].xtc_probability for i in rows])
        return cls(rows, on_device(thresholds, device), probabilities, side_keys(keys[rows], XTC_STREAM))

    def apply(self, scores_RW: Tensor, positions: Sequence[int], num_kept: int = 1) -> Tensor:
        """Leave out the top choices of the rows whose number for the position, of new tokens before it, says so."""
        uniforms = uniforms_at(self.keys, [positions[row] for row in self.rows])
        places = np.flatnonzero(uniforms < self.probabilities).tolist()
        if places:
            device = scores_RW.device
            rows = RowIndex.of([self.rows[k] for k in places], len(scores_RW), device)
            threshold_K1 = RowIndex.of(places, len(self.rows), device).take(self.threshold_K1)
            rows.put(scores_RW, exclude_top_choices(rows.take(scores_RW), threshold_K1, num_kept))
        return scores_RW
