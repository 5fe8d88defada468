"""One step's decision: which rows compute how many tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from server.engine.sequence import Sequence
from server.engine.sequence_group import SequenceGroup


class Share(NamedTuple):
    """A row's part of a step."""

    sequence: Sequence
    num_new_tokens: int
    group: SequenceGroup

    @property
    def num_prompt_tokens(self) -> int:
        """Of the new tokens, those of the prompt. Asked before they are computed."""
        missing = self.sequence.num_prompt_tokens - self.sequence.num_computed_tokens
        return max(0, min(self.num_new_tokens, missing))


@dataclass(slots=True)
class Batch:
    """One step's decision."""

    shares: list[Share] = field(default_factory=list)
    started: list[SequenceGroup] = field(default_factory=list)
    """Groups admitted for the first time."""
    num_preemptions: int = 0
