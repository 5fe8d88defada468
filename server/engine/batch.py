"""One step's decision: which rows compute how many tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from server.engine.batch_inputs import IntArray
from server.engine.encoding import SourcePart
from server.engine.sequence import Sequence
from server.engine.sequence_group import SequenceGroup
from server.engine.sources import Source


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


class SourceShare(NamedTuple):
    """A source's part of a step."""

    part: SourcePart
    group: SequenceGroup
    """For which it is computed; others may read it too."""
    num_tokens: int
    """Tokens of a short source that would cost as much."""


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

    source_shares: list[SourceShare] = field(default_factory=list)
    """Each of another source."""

    # Lists, here and below, for a generator costs more than what it sums up.

    @property
    def num_tokens(self) -> int:
        return sum([share.num_new_tokens for share in self.shares]) + self.num_drafted + self.num_source_tokens

    @property
    def num_source_tokens(self) -> int:
        return sum([share.num_tokens for share in self.source_shares])

    @property
    def num_prompt_tokens(self) -> int:
        """Of the new tokens, those of prompts, and all tokens of sources that are complete after the step.

        Asked before they are computed.
        """
        of_rows = sum([share.num_prompt_tokens for share in self.shares if share.sequence.is_in_prompt])
        return of_rows + sum([len(part.source.ids) for part in self.parts if part.is_last])

    @property
    def num_rows(self) -> int:
        """With those whose sources are not complete: as rows in the middle of their prompts, they get no token."""
        return len(self.shares) + sum([not part.is_last for part in self.parts])

    @property
    def has_work(self) -> bool:
        return bool(self.shares or self.source_shares)

    @property
    def groups(self) -> list[SequenceGroup]:
        """All that the step computes something for."""
        groups = [*(share.group for share in self.shares), *(share.group for share in self.source_shares)]
        return list({id(group): group for group in groups}.values())

    @property
    def parts(self) -> list[SourcePart]:
        return [share.part for share in self.source_shares]

    def part_of(self, source: Source) -> SourcePart | None:
        return next((part for part in self.parts if part.source.held is source.held), None)
