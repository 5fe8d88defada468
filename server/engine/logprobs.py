"""Log-probabilities of tokens and the most likely ones; one formula, so that a token's is the same float everywhere.

Dimension key
    R  rows
    V  width of a row: the vocabulary, or candidates in the order of their token ids
    N  tokens of a row
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.engine import reductions
from server.engine.batch_inputs import on_device
from server.engine.reductions import Scratch
from server.engine.row_index import RowIndex
from server.protocol import SamplingParams, TokenLogprob

ROWS_AT_ONCE = 32
"""Rows that `logprobs_of` treats at a time: a long prompt's would fill the memory."""

Told = tuple[list[float], list[list[TokenLogprob]]]
"""Of each row its token's log-probability, and the most likely tokens, falling, or those that are asked for."""


class Distribution:
    """The log-probabilities that rows of logits stand for."""

    def __init__(self, logits_RV: Tensor, scratch: Scratch) -> None:
        self.device = logits_RV.device
        self._logits_RV = logits_RV
        self._top_R1, self._log_top_R1 = reductions.top_and_its_logprob(logits_RV, scratch)

    def of(self, columns_RN: Tensor) -> Tensor:
        # The maximum goes first: a difference of near numbers is exact.
        return self._logits_RV.gather(1, columns_RN) - self._top_R1 + self._log_top_R1

    def _most_likely(self, num_tokens: int) -> tuple[Tensor, Tensor | None]:
        """Columns of the greatest logits in falling order, of equal ones the lower first, ``[R, N]``.

        Beside them the rows in which so many logits are equal that `_sorted` has to look; None if there can be none.
        """
        width = self._logits_RV.shape[1]
        num_candidates = min(num_tokens + reductions.ROOM_FOR_TIES, width)
        values_RW, columns_RW = reductions.largest(self._logits_RV, num_candidates)
        falling_RW, order_RW = values_RW.sort(dim=-1, descending=True, stable=True)
        columns_RN = columns_RW.gather(1, order_RW)[:, :num_tokens]
        if num_candidates == width:
            return columns_RN, None
        last_R = falling_RW[:, num_tokens - 1]
        return columns_RN, (last_R == falling_RW[:, -1]) & last_R.isfinite()

    def _sorted(self, rows: RowIndex, num_tokens: int) -> Tensor:
        """As the first of `_most_likely`, of some rows and whatever they hold."""
        return rows.take(self._logits_RV).sort(dim=-1, descending=True, stable=True).indices[:, :num_tokens]

    def tell(self, columns_R: Tensor, top_n: int, columns_RW: Tensor | None = None) -> Told:
        """The log-probabilities of the rows' tokens and of their ``top_n`` most likely ones.

        ``columns_RW`` are the token ids of the columns, where these are not the vocabulary.
        """
        columns_RN = columns_R[:, None]
        is_unsure_R = None
        if top_n:
            top_RN, is_unsure_R = self._most_likely(top_n)
            columns_RN = torch.cat([columns_RN, top_RN], dim=1)
        ids, logprobs, is_unsure = self._read(columns_RN, columns_RW, is_unsure_R)
        if is_unsure.any():
            rows = RowIndex.of(np.flatnonzero(is_unsure[:, 0]).tolist(), len(columns_RN), self.device)
            rows.put(columns_RN[:, 1:], self._sorted(rows, top_n))
            ids, logprobs, _ = self._read(columns_RN, columns_RW, None)
        tops = zip(ids[:, 1:].tolist(), logprobs[:, 1:].tolist(), strict=True)
        return logprobs[:, 0].tolist(), [top_list(*row) for row in tops]

    def _read(
        self, columns_RN: Tensor, columns_RW: Tensor | None, is_unsure_R: Tensor | None
    ) -> npt.NDArray[np.float64]:
        """Token ids, log-probabilities and ``is_unsure_R``, each ``[R, N]``, in one copy to the host."""
        ids_RN = columns_RN if columns_RW is None else columns_RW.gather(1, columns_RN)
        parts_3RN = torch.zeros((3, *ids_RN.shape), dtype=torch.float64, device=self.device)
        parts_3RN[0] = ids_RN
        parts_3RN[1] = self.of(columns_RN)
        if is_unsure_R is not None:
            parts_3RN[2] = is_unsure_R[:, None]
        host: npt.NDArray[np.float64] = parts_3RN.cpu().numpy()
        return host

    def given(
        self, wanted: Sequence[tuple[int, Sequence[int]]], columns_RW: Tensor | None = None
    ) -> list[list[TokenLogprob]]:
        """The log-probabilities of token ids in some rows, in the order given; -inf for one that cannot be chosen.

        ``wanted`` has rows, each with its token ids. ``columns_RW`` as in `tell`.
        """
        pairs = [(row, token_id) for row, ids in wanted for token_id in ids]
        if not pairs:
            return [[] for _ in wanted]
        rows_L, ids_L = on_device(np.array(pairs, dtype=np.int64), self.device).unbind(1)
        columns_L, is_candidate_L = ids_L, torch.ones_like(ids_L, dtype=torch.bool)
        if columns_RW is not None:
            is_its_LW = columns_RW[rows_L] == ids_L[:, None]
            columns_L, is_candidate_L = is_its_LW.int().argmax(1), is_its_LW.any(1)
        logprobs_L = self._logits_RV[rows_L, columns_L] - self._top_R1[rows_L, 0] + self._log_top_R1[rows_L, 0]
        logprobs = iter(logprobs_L.masked_fill(~is_candidate_L, -torch.inf).double().tolist())
        return [[TokenLogprob(token_id, next(logprobs)) for token_id in ids] for _, ids in wanted]


def logprobs_of(logits_RV: Tensor, ids_R: Sequence[int], top_n: int) -> Told:
    """Each row's log-probability of its token, and its ``top_n`` most likely tokens."""
    told_ids_R = on_device(np.array(ids_R, dtype=np.int64), logits_RV.device)
    logprobs: list[float] = []
    tops: list[list[TokenLogprob]] = []
    scratch = Scratch()
    for first in range(0, len(ids_R), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        some = Distribution(logits_RV[rows], scratch).tell(told_ids_R[rows], top_n)
        logprobs += some[0]
        tops += some[1]
    return logprobs, tops


class RequestedLogprobs:
    """The rows whose log-probabilities are asked for in each step, and the distributions that these are of.

    A step begins with `take_raw` and ends with `read`. The rows stay the same from step to step.
    """

    def __init__(self, params: Sequence[SamplingParams], scratch: Scratch) -> None:
        self._scratch = scratch
        self._tops = [p.top_n_tokens for p in params]
        self._ids = [p.logprob_token_ids for p in params]
        requested = [i for i, p in enumerate(params) if p.tells_logprobs]
        self._raw_rows = [i for i in requested if params[i].logprobs_mode == "raw"]
        self._raw_index: RowIndex | None = None
        """Made in the first step, which shows where the logits lie."""
        self.processed_rows = [i for i in requested if params[i].logprobs_mode != "raw"]
        """Those whose log-probabilities are of what the token was drawn from."""
        self._processed_rows = frozenset(self.processed_rows)
        self._raw: Distribution | None = None
        self._drawn_from: list[tuple[list[int], Tensor, Tensor, Tensor | None]] = []

    def wants_processed(self, rows: list[int]) -> bool:
        return not self._processed_rows.isdisjoint(rows)

    def take_raw(self, logits_SV: Tensor, *, will_change: bool) -> None:
        """Remember the model's own distribution, before any rule."""
        self._raw, self._drawn_from = None, []
        if not self._raw_rows:
            return
        if self._raw_index is None:
            self._raw_index = RowIndex.of(self._raw_rows, len(logits_SV), logits_SV.device)
        logits_SV = self._raw_index.take(logits_SV)
        if self._raw_index.is_whole and will_change:
            logits_SV = logits_SV.clone()
        self._raw = Distribution(logits_SV, self._scratch)

    def take_drawn(self, rows: list[int], scores_RW: Tensor, chosen_R: Tensor, columns_RW: Tensor | None) -> None:
        """Remember what rows were drawn from: of a row's several times the last counts."""
        places = [k for k, row in enumerate(rows) if row in self._processed_rows]
        index = RowIndex.of(places, len(rows), scores_RW.device)
        columns = None if columns_RW is None else index.take(columns_RW)
        self._drawn_from.append(([rows[k] for k in places], index.take(scores_RW), index.take(chosen_R), columns))

    def read(self, token_ids: list[int]) -> Told:
        """Of every row; 0 and nothing where not asked for."""
        logprobs = [0.0] * len(self._tops)
        tops: list[list[TokenLogprob]] = [[] for _ in self._tops]
        if self._raw is not None:
            chosen_R = on_device(np.array([token_ids[i] for i in self._raw_rows], dtype=np.int64), self._raw.device)
            self._write(logprobs, tops, self._raw_rows, self._raw.tell(chosen_R, self._most(self._raw_rows)))
            self._write_given(tops, self._raw_rows, self._raw, None)
        for rows, scores_RW, chosen_R, columns_RW in self._drawn_from:
            drawn_from = Distribution(scores_RW, self._scratch)
            self._write(logprobs, tops, rows, drawn_from.tell(chosen_R, self._most(rows), columns_RW))
            self._write_given(tops, rows, drawn_from, columns_RW)
        # They hold on to the step's logits.
        self._raw, self._drawn_from = None, []
        return logprobs, tops

    def _most(self, rows: list[int]) -> int:
        return max(self._tops[i] for i in rows)

    def _write(self, logprobs: list[float], tops: list[list[TokenLogprob]], rows: list[int], told: Told) -> None:
        for row, logprob, top in zip(rows, *told, strict=True):
            logprobs[row] = logprob
            tops[row] = top[: self._tops[row]]

    def _write_given(
        self,
        tops: list[list[TokenLogprob]],
        rows: list[int],
        distribution: Distribution,
        columns_RW: Tensor | None,
    ) -> None:
        """Rows that ask for certain tokens are told of these alone."""
        wanted = [(place, self._ids[row]) for place, row in enumerate(rows) if self._ids[row]]
        for (place, _), found in zip(wanted, distribution.given(wanted, columns_RW), strict=True):
            tops[rows[place]] = found


def top_list(token_ids: Sequence[float], logprobs: Sequence[float]) -> list[TokenLogprob]:
    """The tokens that can be chosen at all, in falling order, of equal ones the lower id first."""
    falling = sorted((-logprob, int(token_id)) for token_id, logprob in zip(token_ids, logprobs, strict=True))
    return [TokenLogprob(token_id, -negative) for negative, token_id in falling if negative < torch.inf]
