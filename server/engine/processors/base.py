"""What a logits processor is. Knows nothing of temperature or drawing.

A sequence holds only the processors it asked for, in the order of `order.PROCESSORS`; most hold none and cost nothing.
Each class changes the logits of all its rows at once, in the few token ids concerned.

Dimension key
    S  rows: sequences that choose a token
    V  vocabulary size
    N  (row, token id) pairs that a rule touches
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.engine.batch_inputs import IntArray, on_device
from server.engine.grammar import Grammar
from server.protocol import PromptContext, SamplingParams
from server.vocabulary import Vocabulary

FloatArray = npt.NDArray[np.float64]

HIGHEST_LOGIT = 1e15
"""No rule lifts a logit above it, so that no bias or penalty makes one infinite, whatever the temperature."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What is known of a sequence when its processors are made: at its arrival, or after it went back."""

    params: SamplingParams
    prompt_ids: IntArray
    output_ids: IntArray
    ending_ids: frozenset[int]
    """Tokens that end the sequence."""
    max_tokens: int
    """Most tokens of prompt and output together."""
    vocabulary: Vocabulary | None = None
    """The tokens' bytes; None where no rule on text is asked for."""
    context: PromptContext = field(default_factory=PromptContext)
    banned_at: dict[int, set[int]] = field(default_factory=dict)
    """Tokens that may not be chosen after so many new tokens, for a banned phrase began with them."""
    grammar: Grammar | None = None
    """``params.grammar``, compiled."""

    @property
    def input_ids(self) -> IntArray:
        """What the client gave the model to read: the source, or else the prompt."""
        return np.array(self.context.source_ids, dtype=np.int64) if self.context.source_ids else self.prompt_ids

    @property
    def token_ids(self) -> IntArray:
        return np.concatenate([self.prompt_ids, self.output_ids])


class LogitsProcessor(ABC):
    """One rule and what it remembers of one sequence."""

    is_spent = False
    """Whether it will change nothing any more."""
    ends_sequence = False
    """Whether the rule allows no further token: the sequence ends as by an end token. Asked after `accept`."""
    problem: str | None = None
    """Where the rule leaves no token: why, as a sentence for the client. Asked after `apply`."""

    @classmethod
    @abstractmethod
    def for_sequence(cls, start: Start) -> Self | None:
        """The rule's state for a sequence, or None where the parameters are neutral."""

    @abstractmethod
    def accept(self, token_id: int) -> None:
        """The sequence's output grew by ``token_id``."""

    def ends_with(self, token_id: int) -> bool:  # noqa: ARG002
        """Whether `ends_sequence` would be true after the token; changes nothing. Beams ask before they choose."""
        return False

    def fork(self) -> Self:
        """The same state for a copy of the sequence; afterwards neither changes the other.

        Beams fork in every step: what never changes is shared. A rule whose `accept` changes an object in place gives
        its fork one of its own.
        """
        return copy.copy(self)

    @classmethod
    @abstractmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        """Change ``logits_SV[rows]`` in place; ``processors`` belong to ``rows``.

        For beams the rows are log-probabilities, as in transformers.
        """


def flat_indices(rows: list[int], ids: Sequence[IntArray], vocab_size: int) -> IntArray:
    """Indices into the flattened ``[S, V]`` logits of every row's token ids, which are all of the vocabulary."""
    starts = np.repeat(np.array(rows, dtype=np.int64) * vocab_size, [len(row_ids) for row_ids in ids])
    return np.concatenate(ids) + starts


def add(logits_SV: Tensor, rows: list[int], ids: Sequence[IntArray], amounts: Sequence[FloatArray]) -> None:
    """Add to the logits of each row's ``ids``, none of them twice. Minus infinity forbids; none becomes infinite."""
    indices, is_known = _known_indices(rows, ids, logits_SV.shape[1])
    bounded = np.minimum(np.concatenate(amounts)[is_known], HIGHEST_LOGIT)
    with np.errstate(over="ignore"):  # what is below float32 is as good as forbidden
        amount_N = on_device(bounded.astype(np.float32), logits_SV.device)
    indices_N = on_device(indices, logits_SV.device)
    flat = logits_SV.view(-1)
    flat[indices_N] = (flat[indices_N] + amount_N).clamp_(max=HIGHEST_LOGIT)


def forbid(logits_SV: Tensor, rows: list[int], ids: Sequence[IntArray]) -> None:
    """Make it impossible to choose each row's ``ids``."""
    indices, _ = _known_indices(rows, ids, logits_SV.shape[1])
    logits_SV.view(-1)[on_device(indices, logits_SV.device)] = -torch.inf


def allow_only(logits_SV: Tensor, rows: list[int], ids: Sequence[IntArray]) -> None:
    """Make it impossible to choose any other than each row's ``ids``."""
    indices, _ = _known_indices(rows, ids, logits_SV.shape[1])
    indices_N = on_device(indices, logits_SV.device)
    flat = logits_SV.view(-1)
    kept_N = flat[indices_N]
    logits_SV[rows] = -torch.inf
    flat[indices_N] = kept_N


def _known_indices(rows: list[int], ids: Sequence[IntArray], vocab_size: int) -> tuple[IntArray, npt.NDArray[np.bool]]:
    """`flat_indices` of the ids that the vocabulary has, and which these are: a client may name any number."""
    is_known = np.concatenate(ids) < vocab_size
    return flat_indices(rows, ids, vocab_size)[is_known], is_known
