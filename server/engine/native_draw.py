"""Draws tokens by a CPU kernel, a row at a time: the rules that `cutoffs` and `draw_rules` have in torch.

Both ways have the same rules and the same uniform numbers. Sums are rounded in another order, so that a token differs
only where a number is within rounding of an edge. Which way is taken does not depend on the rows.

Dimension key
    S  sequences that sample
    C  controls of a row
    K  rows of S whose scores are told
    V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.engine.draw_rules import CONTROLS
from server.engine.randomness import XTC_STREAM, side_keys, stream_keys, uniforms_at
from server.engine.sequence import Sequence
from server.protocol import SamplingParams

CHANGING = ("excludes_top", "uniform")
"""Columns of the controls that change with every step."""
EXCLUDES_TOP, UNIFORM = (CONTROLS.index(name) for name in CHANGING)
LEAST, GREATEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class NativeDraws:
    """What the rows need for every draw; they stay the same."""

    def __init__(self, sequences: Rows[Sequence], vocab_size: int) -> None:
        self._sequences = list(sequences)
        self._controls_SC = np.array([_controls(s.params, vocab_size) for s in sequences], dtype=np.float64)
        self._token_ids_S = np.zeros(len(sequences), dtype=np.int64)
        self._told_S = np.zeros(len(sequences), dtype=np.int64)
        self._addresses = [array.ctypes.data for array in (self._controls_SC, self._token_ids_S, self._told_S)]
        self._drawn = [i for i, s in enumerate(sequences) if s.params.do_sample]
        self._keys = self._keys_of(self._drawn)
        self._excluding = [i for i in self._drawn if sequences[i].params.xtc_probability > 0.0]
        self._side_keys = side_keys(self._keys_of(self._excluding), XTC_STREAM)
        self._probabilities = np.array([sequences[i].params.xtc_probability for i in self._excluding])

    def draw(self, module: ModuleType, logits_SV: Tensor, told: dict[int, Tensor]) -> npt.NDArray[np.int64]:
        """Each row's token, -1 where its logits are not finite or forbid all. The logits may be changed.

        ``told`` has the rows whose scores, as the token was drawn from them, are to be written.
        """
        if self._drawn:
            self._controls_SC[self._drawn, UNIFORM] = uniforms_at(self._keys, self._positions(self._drawn))
        if self._excluding:
            numbers = uniforms_at(self._side_keys, self._positions(self._excluding))
            self._controls_SC[self._excluding, EXCLUDES_TOP] = numbers < self._probabilities
        for row, scores_V in told.items():
            self._told_S[row] = scores_V.data_ptr()
        module.draw(logits_SV.data_ptr(), *logits_SV.shape, *self._addresses)
        return self._token_ids_S

    def _keys_of(self, rows: list[int]) -> npt.NDArray[np.uint64]:
        sequences = [self._sequences[i] for i in rows]
        return stream_keys([s.params.seed for s in sequences], [s.sample_index for s in sequences])

    def _positions(self, rows: list[int]) -> list[int]:
        return [sequence.num_output_tokens for sequence in map(self._sequences.__getitem__, rows)]


def can_draw(logits_SV: Tensor) -> bool:
    return logits_SV.is_cpu and logits_SV.dtype == torch.float32 and logits_SV.is_contiguous()


def _controls(params: SamplingParams, vocab_size: int) -> list[float]:
    values = {
        "temperature": min(max(params.temperature, LEAST), GREATEST),
        "top_k": params.top_k if 0 < params.top_k < vocab_size else 0,
        **dict.fromkeys(CHANGING, 0.0),
    }
    return [float(values[name] if name in values else getattr(params, name)) for name in CONTROLS]
