"""The processors in the one order in which they are applied, which is transformers'; their making and applying.

What transformers does not have stands next to its nearest kin. The draw's rules come after all of these.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from server.engine.processors.banned_at import BannedAt
from server.engine.processors.base import LogitsProcessor, Start
from server.engine.processors.biases import LogitBias, SequenceBias
from server.engine.processors.diversity import HammingDiversity
from server.engine.processors.grammar import GrammarMask
from server.engine.processors.lengths import ExponentialDecayLengthPenalty, MinNewTokens
from server.engine.processors.ngrams import Dry, EncoderNoRepeatNGram, NoRepeatNGram
from server.engine.processors.penalties import EncoderRepetitionPenalty, OutputPenalty, RepetitionPenalty
from server.engine.processors.phrase_penalties import PhrasePenalties
from server.engine.processors.token_sets import (
    AllowedTokens,
    BeginSuppressTokens,
    ForcedFirstToken,
    ForcedLastToken,
    SuppressTokens,
)

PROCESSORS: tuple[type[LogitsProcessor], ...] = (
    SequenceBias,
    LogitBias,
    PhrasePenalties,
    HammingDiversity,
    EncoderRepetitionPenalty,
    RepetitionPenalty,
    OutputPenalty,
    Dry,
    NoRepeatNGram,
    EncoderNoRepeatNGram,
    BannedAt,
    MinNewTokens,
    AllowedTokens,
    ForcedFirstToken,
    ForcedLastToken,
    ExponentialDecayLengthPenalty,
    SuppressTokens,
    BeginSuppressTokens,
    GrammarMask,
)


def for_sequence(start: Start) -> tuple[LogitsProcessor, ...]:
    """The processors that a sequence asked for."""
    made = (rule.for_sequence(start) for rule in PROCESSORS)
    return tuple(processor for processor in made if processor is not None)


def fork(processors: tuple[LogitsProcessor, ...]) -> tuple[LogitsProcessor, ...]:
    """The processors of a copy of their sequence."""
    return tuple(processor.fork() for processor in processors)


def apply(logits_SV: Tensor, processors_S: Iterable[tuple[LogitsProcessor, ...]]) -> None:
    """Apply every row's processors in place, rule by rule."""
    by_rule: dict[type[LogitsProcessor], tuple[list[int], list[LogitsProcessor]]] = {}
    for row, processors in enumerate(processors_S):
        for processor in processors:
            rows, members = by_rule.setdefault(type(processor), ([], []))
            rows.append(row)
            members.append(processor)
    for rule in PROCESSORS:
        if rule in by_rule:
            rule.apply(logits_SV, *by_rule[rule])
