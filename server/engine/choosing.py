"""From a step's logits to its choices: who samples, which rows stand for several, which belong together.

Rows in the middle of a prompt have no logits; of these the runner says which have failed.

Rows that ask for nothing but their next token go straight to the sampler; only a step with a request for several
samples, beams, guidance or a scored prompt sorts its rows.

Dimension key
    R  logits of a step
    B  rows of a step that have logits
    K  rows of beam searches
    S  sequences that sample
    V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from server.engine import guidance, prompt_scores
from server.engine.batch import Batch, Share
from server.engine.beam_ranking import advance
from server.engine.beams import BeamStep
from server.engine.guidance import Pair, Unguided
from server.engine.row_index import RowIndex
from server.engine.sampler import Sampled, Sampler
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence
from server.engine.sequence_group import SequenceGroup
from server.errors import NoTokenLeft, NumericalError, UnsupportedGrammar


@dataclass(slots=True)
class Choices:
    """What a step's logits mean."""

    failed: list[tuple[SequenceGroup, str, str]] = field(default_factory=list)
    """Groups that no token can be chosen for, each once; the failure's code and what to say."""
    groups: list[SequenceGroup] = field(default_factory=list)
    """Of the sequences."""
    sequences: list[Sequence] = field(default_factory=list)
    """Those that sampled. Where known tokens are left to compute, the sampled one means nothing."""
    drafts: dict[int, Share] = field(default_factory=dict)
    """By the first row: shares with drafts. A row for each drafted token follows, in ``sequences`` as it would be."""
    sampled: Sampled | None = None
    beams: list[tuple[SequenceGroup, BeamStep]] = field(default_factory=list)

    def fail(self, group: SequenceGroup, *, has_logits: bool) -> None:
        """``has_logits`` says that the model's output is fine: the request's own rules forbid every token."""
        if self.has_failed(group):
            return
        processors = (processor for sequence in group.sequences for processor in sequence.processors)
        problem = next((processor.problem for processor in processors if processor.problem), None)
        if problem is not None:
            self.failed.append((group, UnsupportedGrammar.code, problem))
        elif has_logits:
            message = "The options of the request forbid every token at this position."
            self.failed.append((group, NoTokenLeft.code, message))
        else:
            message = "The model's output for this request was not finite. Other requests are not affected."
            self.failed.append((group, NumericalError.code, message))

    def is_drafted(self, row: int) -> bool:
        return any(first <= row <= first + share.num_drafted for first, share in self.drafts.items())

    def has_failed(self, group: SequenceGroup) -> bool:
        return any(failed is group for failed, _, _ in self.failed)


class Chooser:
    """Holds the sampler, and nothing that a token depends on."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._sampler = Sampler()

    def choose(self, logits_RV: Tensor, batch: Batch, failed_rows: Iterable[int] = ()) -> Choices:
        """The logits may be changed. The batch's tokens count as computed already.

        ``failed_rows`` are the shares without logits whose keys or values are not finite.
        """
        choices = Choices()
        for row in failed_rows:
            choices.fail(batch.shares[row].group, has_logits=False)
        shares = [share for share in batch.shares if share.num_logits]
        if not shares:
            return choices
        if {share.group.is_simple for share in shares} == {True}:
            _lay_out(shares, choices, has_drafts=batch.num_drafted > 0)
            self._sample(logits_RV, choices)
            return choices
        logits_BV = _last_logits(logits_RV, shares)
        _find_failed(logits_BV, shares, choices)
        unguided = _guide(logits_BV, shares)
        rows = self._sort(shares, choices)
        if rows:
            self._sample(logits_BV if rows == list(range(len(logits_BV))) else logits_BV[rows], choices)
            if unguided is not None:
                _tell(unguided, rows, choices)
        _rank(logits_BV, unguided, shares, choices)
        return choices

    def _sample(self, logits_SV: Tensor, choices: Choices) -> None:
        # Also where a scored prompt goes on, and the token means nothing: what is not finite must be known before
        # others can find it in the cache.
        sampled = choices.sampled = self._sampler.sample(logits_SV, choices.sequences)
        if all(sampled.is_finite):
            return
        for row, is_finite in enumerate(sampled.is_finite):
            # A place of a draft may never be reached; who reaches one goes there again without a draft.
            if not is_finite and not choices.is_drafted(row):
                has_logits = bool(logits_SV[row].amax() == -torch.inf)
                if not (has_logits and choices.sequences[row].is_cut_by_bans):
                    choices.fail(choices.groups[row], has_logits=has_logits)

    def _sort(self, shares: list[Share], choices: Choices) -> list[int]:
        """Which rows sample, one of them several times if it stands for several samples."""
        rows: list[int] = []
        for row, share in enumerate(shares):
            group = share.group
            if group.search is not None or choices.has_failed(group) or share.sequence not in group.sequences:
                continue
            sequences = [share.sequence]
            if not group.has_forked and share.sequence.num_new_tokens == 0:
                sequences = self._scheduler.reproduce(group, [0] * group.params.num_return_sequences)
                group.has_forked = True
                for index, sequence in enumerate(sequences):
                    sequence.sample_index = index
            rows += [row] * len(sequences)
            choices.sequences += sequences
            choices.groups += [group] * len(sequences)
        return rows


def _lay_out(shares: list[Share], choices: Choices, *, has_drafts: bool) -> None:
    """Each row once, and once more for each place of its draft."""
    if not has_drafts:
        choices.groups = [share.group for share in shares]
        choices.sequences = [share.sequence for share in shares]
        return
    for share in shares:
        places = [share.sequence]
        if share.draft_ids is not None:
            choices.drafts[len(choices.sequences)] = share
            places += share.sequence.after(share.draft_ids)
        choices.sequences += places
        choices.groups += [share.group] * len(places)


def _last_logits(logits_RV: Tensor, shares: list[Share]) -> Tensor:
    """Each row's last logits, after the others have scored the prompts."""
    scored = [share.is_scored for share in shares]
    if not any(scored):
        return logits_RV
    stops = np.cumsum([share.num_logits for share in shares]).tolist()
    for share, stop, is_scored in zip(shares, stops, scored, strict=True):
        if is_scored:
            prompt_scores.take(share.group, logits_RV[stop - share.num_new_tokens : stop])
    return RowIndex.of([stop - 1 for stop in stops], len(logits_RV), logits_RV.device).take(logits_RV)


def _find_failed(logits_BV: Tensor, shares: list[Share], choices: Choices) -> None:
    """The sampler looks at its own rows; beams and shadows are looked at here."""
    rows = [row for row, share in enumerate(shares) if share.group.is_joint]
    if rows:
        logits_RV = RowIndex.of(rows, len(logits_BV), logits_BV.device).take(logits_BV)
        is_finite = logits_RV.amax(-1).isfinite().tolist()  # NaN and infinity survive a maximum
        for row, is_good in zip(rows, is_finite, strict=True):
            if not is_good:
                choices.fail(shares[row].group, has_logits=False)


def _guide(logits_BV: Tensor, shares: list[Share]) -> Unguided | None:
    """Guided logits in the place of those that choose a token."""
    rows = {id(share.sequence): row for row, share in enumerate(shares)}
    pairs = [
        Pair(row, rows[id(share.sequence.shadow)], share.group.params.guidance_scale)
        for row, share in enumerate(shares)
        if share.sequence.shadow is not None and share.sequence.num_new_tokens == 0
    ]
    return guidance.combine(logits_BV, pairs) if pairs else None


def _rank(logits_BV: Tensor, unguided: Unguided | None, shares: list[Share], choices: Choices) -> None:
    """One step of every beam search whose rows are all computed."""
    rows = [
        row
        for row, share in enumerate(shares)
        if share.group.search is not None
        and share.sequence in share.group.sequences
        and share.sequence.num_new_tokens == 0
        and not choices.has_failed(share.group)
    ]
    if not rows:
        return
    groups = list({id(shares[row].group): shares[row].group for row in rows}.values())
    logits_KV = logits_BV if len(rows) == len(logits_BV) else logits_BV[rows]
    searches = [group.search for group in groups if group.search is not None]
    own_KV = logits_KV if unguided is None else unguided.put_back(logits_KV, rows)
    steps = advance(logits_KV, searches, [[row.processors for row in group.sequences] for group in groups], own_KV)
    for group, step in zip(groups, steps, strict=True):
        if step.is_finite:
            choices.beams.append((group, step))
        else:
            choices.fail(group, has_logits=True)


def _tell(unguided: Unguided, rows: list[int], choices: Choices) -> None:
    """The raw log-probabilities are the model's own."""
    sampled = choices.sampled
    assert sampled is not None
    for i, (row, sequence) in enumerate(zip(rows, choices.sequences, strict=True)):
        params = sequence.params
        if row not in unguided or params.logprobs_mode != "raw" or not sampled.is_finite[i]:
            continue
        if params.tells_logprobs:
            token_id = sampled.token_ids[i]
            sampled.logprobs[i], sampled.top_logprobs[i] = unguided.tell(row, token_id, params)
