"""One step's decision: which rows compute how many tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from server.engine.batch_inputs import IntArray
from server.engine.sequence import Sequence
from server.engine.sequence_group import SequenceGroup
from server.engine.sources import Source, SourceState


class Share(NamedTuple):
    """A row's part of a step."""

    sequence: Sequence
    num_new_tokens: int
    group: SequenceGroup
    num_logits: int = 1
    """Of how many of the new tokens, from the last one back, the logits are wanted."""
    draft_ids: IntArray | None = None
    """Guesses that are computed behind the new tokens, with a logits row for each: they may be the next ones."""

    @property
    def num_drafted(self) -> int:
        return 0 if self.draft_ids is None else len(self.draft_ids)

    @property
    def is_scored(self) -> bool:
        """Whether the log-probabilities of its prompt tokens are wanted."""
        return self.group.wants_prompt_logprobs and self.sequence is self.group.sequences[0]

    @property
    def num_prompt_tokens(self) -> int:
        """Of the new tokens, those of the prompt. Asked before they are computed."""
        missing = self.sequence.num_prompt_tokens - self.sequence.num_computed_tokens
        return max(0, min(self.num_new_tokens, missing))


def share_of(row: Sequence, num_new_tokens: int, group: SequenceGroup) -> Share:
    """A row's part whose logits are wanted only where they choose or score a token: not in the middle of a prompt."""
    share = Share(row, num_new_tokens, group, num_logits=int(num_new_tokens == row.num_new_tokens))
    return share._replace(num_logits=num_new_tokens) if share.is_scored else share


@dataclass(slots=True)
class Batch:
    """One step's decision."""

    shares: list[Share] = field(default_factory=list)
    started: list[SequenceGroup] = field(default_factory=list)
    """Groups admitted for the first time."""
    num_growing: int = 0
    """Of the shares, the first so many are rows that lacked one token: those of running streams."""
    num_preemptions: int = 0
    num_drafted: int = 0
    """Tokens of all drafts."""
    num_accepted: int = 0
    """Drafted tokens that came true."""

    sources: list[SourceState] = field(default_factory=list)
    """Texts that the step encodes, each once."""
    num_source_tokens: int = 0
    """Of all of them."""

    # Lists, here and below, for a generator costs more than what it sums up.

    @property
    def num_tokens(self) -> int:
        return sum([share.num_new_tokens for share in self.shares]) + self.num_drafted + self.num_source_tokens

    @property
    def num_prompt_tokens(self) -> int:
        """Of the new tokens, those of prompts and sources. Asked before they are computed."""
        of_rows = sum([share.num_prompt_tokens for share in self.shares if share.sequence.is_in_prompt])
        return of_rows + self.num_source_tokens

    def read(self, source: Source | None) -> int:
        """A row of the step reads ``source``. Returns its tokens if the step has to encode it for this row."""
        if source is None or source.is_computed or source.held in self.sources:
            return 0
        self.sources.append(source.held)
        self.num_source_tokens += len(source.ids)
        return len(source.ids)
