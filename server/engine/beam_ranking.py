"""From logits to the next rows of all beam searches of a step: one log-softmax, one pass of processors, one top-k.

As in transformers the processors see float32 log-probabilities, which are not normalised again unless
``renormalize_logits`` says so. The lanes of a diverse search come one after another, because each depends on the
tokens of those before; the first lanes of all searches, which for plain ones is all, are ranked together.

Dimension key
    R  rows of all searches, laid end to end
    S  rows of the lanes that are ranked together
    K  rows of one lane
    V  vocabulary size
    W  most likely tokens of a row, in the order of token ids
    C  candidates of a lane, best first
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.engine import cutoffs, reductions
from server.engine.batch_inputs import IntArray, on_device
from server.engine.beam_drawing import draw
from server.engine.beam_pool import Candidates, FloatArray, TopLogprobs
from server.engine.beams import BeamSearch, BeamStep
from server.engine.logprobs import Distribution
from server.engine.processors import order as processors_order
from server.engine.processors.base import LogitsProcessor
from server.engine.processors.diversity import HammingDiversity
from server.engine.reductions import Scratch
from server.engine.row_index import RowIndex

Processors = tuple[LogitsProcessor, ...]


@dataclass(slots=True)
class LaneRows:
    """One lane of a search in this step."""

    search: BeamSearch
    lane: int
    rows: range
    """Of R."""
    processors_K: Sequence[Processors]
    first: int = 0
    """Of its rows of S."""

    @property
    def place(self) -> slice:
        return slice(self.first, self.first + len(self.rows))

    @property
    def is_told(self) -> bool:
        """Whether the tokens' log-probabilities are asked for."""
        return self.search.params.tells_logprobs


@dataclass(frozen=True, slots=True)
class Choice:
    """A lane's candidates before it is known what becomes of them."""

    rows_C: IntArray
    token_ids_C: IntArray
    scores_C: FloatArray


def advance(
    logits_RV: Tensor,
    searches: Sequence[BeamSearch],
    processors: Sequence[Sequence[Processors]],
    own_RV: Tensor | None = None,
) -> list[BeamStep]:
    """One step of every search. The rows are those of the searches in turn, ``processors`` those of their rows.

    The logits are float32. ``own_RV`` are the model's own, of which the log-probabilities are told, where those of
    guided rows are not.
    """
    is_finite = logits_RV.amax(-1).isfinite().tolist()  # NaN and infinity survive a maximum
    logprobs_RV = logits_RV.log_softmax(-1)
    own_RV = logits_RV if own_RV is None else own_RV
    failed: list[BeamSearch] = []
    passes: dict[int, list[LaneRows]] = {}
    first = 0
    for search, processors_K in zip(searches, processors, strict=True):
        if not all(is_finite[first : first + search.num_rows]):
            failed.append(search)
        for lane, rows in enumerate(search.rows_by_lane if search not in failed else []):
            if rows:
                rows_of_step = range(first + rows.start, first + rows.stop)
                lane_rows = LaneRows(search, lane, rows_of_step, processors_K[rows.start : rows.stop])
                passes.setdefault(lane, []).append(lane_rows)
        if search.params.guidance_scale != 1.0:
            # As in transformers: guided logits are differences of log-probabilities and are not normalised again.
            guided = slice(first, first + search.num_rows)
            logprobs_RV[guided] = logits_RV[guided]
        first += search.num_rows
    for lane in sorted(passes):
        _advance_lanes(logprobs_RV, own_RV, passes[lane], may_change=len(passes) == 1)
    return [BeamStep(is_finite=False) if search in failed else search.end_step() for search in searches]


def _advance_lanes(logprobs_RV: Tensor, own_RV: Tensor, lanes: list[LaneRows], *, may_change: bool) -> None:
    """Choose the next rows of one lane of each search."""
    rows: list[int] = []
    for lane in lanes:
        lane.first = len(rows)
        rows += lane.rows
    index = RowIndex.of(rows, len(logprobs_RV), logprobs_RV.device)
    scores_SV = index.take(logprobs_RV)
    if index.is_whole and not may_change:
        scores_SV = scores_SV.clone()
    _apply_rules(scores_SV, lanes)
    choices = _choose(scores_SV, lanes)
    # All of them before any search changes: memory may run out here, and then the step is made again.
    candidates = [_candidates(lane, choice, own_RV, scores_SV) for lane, choice in zip(lanes, choices, strict=True)]
    for lane, found in zip(lanes, candidates, strict=True):
        lane.search.take(lane.lane, found)


def _candidates(lane: LaneRows, choice: Choice, own_RV: Tensor, scores_SV: Tensor) -> Candidates:
    ends_C = _ends(lane, choice)
    logprobs_C, top_logprobs = _told(lane, choice, own_RV, scores_SV)
    return Candidates(choice.rows_C, choice.token_ids_C, choice.scores_C, ends_C, logprobs_C, top_logprobs)


def _apply_rules(scores_SV: Tensor, lanes: list[LaneRows]) -> None:
    """Every rule on log-probabilities, in place."""
    processors_S = [processors for lane in lanes for processors in lane.processors_K]
    for lane in lanes:
        for processor in (processor for processors in lane.processors_K for processor in processors):
            if isinstance(processor, HammingDiversity):
                processor.lead_away_from(lane.search.chosen_before(lane.lane))
    if any(processors_S):
        processors_order.apply(scores_SV, processors_S)
    for lane in lanes:
        params = lane.search.params
        if params.do_sample:
            num_kept = len(lane.search.ending_ids) + 1 if len(lane.search.ending_ids) else 2
            scores_KV, position = scores_SV[lane.place], lane.search.num_new_tokens
            scores_SV[lane.place] = cutoffs.apply_full(
                scores_KV, params, min_tokens_to_keep=num_kept, position=position
            )
        if params.renormalize_logits:
            # A row of which nothing may follow has nothing to share out, and the others go on.
            scores_SV[lane.place] = scores_SV[lane.place].log_softmax(-1).nan_to_num_(-torch.inf, neginf=-torch.inf)


def _choose(scores_SV: Tensor, lanes: list[LaneRows]) -> list[Choice]:
    """The candidates of each lane, in its order."""
    choices: dict[int, Choice] = {}
    by_width: dict[int, list[int]] = {}
    for i, lane in enumerate(lanes):
        if lane.search.params.do_sample:
            choices[i] = _draw(scores_SV[lane.place], lane)
        else:
            by_width.setdefault(lane.search.num_candidates, []).append(i)
    while by_width:
        width, members = by_width.popitem()
        for i, choice in zip(members, _ranked(scores_SV, [lanes[i] for i in members], width), strict=True):
            if choice is None:
                # Banned phrases took too many: look at more.
                by_width.setdefault(2 * width, []).append(i)
            else:
                choices[i] = choice
    return [choices[i] for i in range(len(lanes))]


def _ranked(scores_SV: Tensor, lanes: list[LaneRows], width: int) -> list[Choice | None]:
    """The best candidates of each lane; None where ``width`` tokens a row are too few to know them."""
    vocab_size = scores_SV.shape[1]
    width = min(width, vocab_size)
    num_rows = sum(len(lane.rows) for lane in lanes)
    if num_rows < len(scores_SV):
        rows = [row for lane in lanes for row in range(len(scores_SV))[lane.place]]
        scores_SV = RowIndex.of(rows, len(scores_SV), scores_SV.device).take(scores_SV)
    # A row's best tokens suffice: adding its running score keeps their order.
    values_SW, columns_SW = reductions.largest(scores_SV, width)
    host = torch.stack([values_SW.double(), columns_SW.double()]).cpu().numpy()  # the one copy to the host
    choices: list[Choice | None] = []
    start = 0
    for lane in lanes:
        stop = start + len(lane.rows)
        scores_KW = host[0, start:stop].astype(np.float32) + lane.search.lanes[lane.lane].scores_K[:, None]
        choices.append(_best(lane, scores_KW, host[1, start:stop].astype(np.int64), is_all=width == vocab_size))
        start = stop
    return choices


def _best(lane: LaneRows, scores_KW: FloatArray, columns_KW: IntArray, *, is_all: bool) -> Choice | None:
    """The best candidates that may be, the lower row and token first among equals."""
    width = scores_KW.shape[1]
    order = np.argsort(-scores_KW, axis=None, kind="stable")
    # Below the first `width` there may be better ones outside of the rows' windows.
    order = order[scores_KW.ravel()[order] > -np.inf][: None if is_all else width]
    num_wanted = lane.search.num_candidates
    rows_C, token_ids_C = order // width, columns_KW.ravel()[order]
    if lane.search.ban_watches:
        allowed = _not_banned(lane)
        order = order[[allowed(row, token) for row, token in zip(rows_C.tolist(), token_ids_C.tolist(), strict=True)]]
        is_all = is_all or len(rows_C) < width
    if len(order) < num_wanted and not is_all and lane.search.ban_watches:
        return None
    order = order[:num_wanted]
    return Choice(order // width, columns_KW.ravel()[order], scores_KW.ravel()[order])


def _draw(scores_KV: Tensor, lane: LaneRows) -> Choice:
    """Beam sampling: candidates drawn from the distribution over all rows' continuations."""
    vocab_size = scores_KV.shape[1]
    accumulated = (
        (scores_KV + on_device(lane.search.lanes[lane.lane].scores_K, scores_KV.device)[:, None])
        .flatten()
        .cpu()
        .numpy()
    )
    allowed = _not_banned(lane)
    search = lane.search
    drawn = draw(
        accumulated,
        search.num_candidates,
        seed=search.params.seed,
        position=search.num_new_tokens,
        is_allowed=lambda index: allowed(*divmod(index, vocab_size)),
    )
    indices_C: IntArray = np.array(drawn, dtype=np.int64)
    return Choice(indices_C // vocab_size, indices_C % vocab_size, accumulated[indices_C])


def _not_banned(lane: LaneRows) -> Callable[[int, int], bool]:
    """Whether a row may go on with a token: it completes no banned phrase."""
    if not lane.search.ban_watches:
        return lambda row, token_id: True  # noqa: ARG005
    watches = lane.search.ban_watches[lane.lane]
    return lambda row, token_id: not watches[row].completes(token_id)


def _ends(lane: LaneRows, choice: Choice) -> npt.NDArray[np.bool_]:
    """Which candidates end with their token."""
    search = lane.search
    token_ids = choice.token_ids_C.tolist()
    ends_C = np.array([token_id in search.ending_ids for token_id in token_ids], dtype=np.bool_)
    pairs = list(enumerate(zip(choice.rows_C.tolist(), token_ids, strict=True)))
    if search.stop_watches:
        watches = search.stop_watches[lane.lane]
        for i, (row, token_id) in pairs:
            ends_C[i] |= watches[row].completes(token_id)
    if any(lane.processors_K):
        for i, (row, token_id) in pairs:
            ends_C[i] |= any(processor.ends_with(token_id) for processor in lane.processors_K[row])
    return ends_C


def _told(lane: LaneRows, choice: Choice, own_RV: Tensor, scores_SV: Tensor) -> tuple[FloatArray, list[TopLogprobs]]:
    """The candidates' log-probabilities and the rows' most likely tokens, as asked for."""
    params = lane.search.params
    if not lane.is_told or not len(choice.rows_C):
        return np.zeros(len(choice.rows_C), dtype=np.float32), []
    is_raw = params.logprobs_mode == "raw"
    told_KV = own_RV[lane.rows.start : lane.rows.stop] if is_raw else scores_SV[lane.place]
    distribution = Distribution(told_KV, Scratch())
    columns_KC = on_device(choice.token_ids_C, own_RV.device).expand(len(lane.rows), -1)
    logprobs_KC = distribution.of(columns_KC).cpu().numpy()
    tops: list[TopLogprobs] = []
    if params.logprob_token_ids:
        tops = distribution.given([(row, params.logprob_token_ids) for row in range(len(lane.rows))])
    elif params.top_n_tokens:
        tops = distribution.tell(columns_KC[:, 0], params.top_n_tokens)[1]
    return logprobs_KC[choice.rows_C, np.arange(len(choice.rows_C))], tops
