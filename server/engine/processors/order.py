"""The processors in the one order in which they are applied, which is transformers'; their making and applying."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from server.engine.processors.base import LogitsProcessor, Start
from server.engine.processors.lengths import MinNewTokens
from server.engine.processors.penalties import OutputPenalty, RepetitionPenalty

PROCESSORS: tuple[type[LogitsProcessor], ...] = (RepetitionPenalty, OutputPenalty, MinNewTokens)


def for_sequence(start: Start) -> tuple[LogitsProcessor, ...]:
    """The processors that a sequence asked for."""
    made = (rule.for_sequence(start) for rule in PROCESSORS)
    return tuple(processor for processor in made if processor is not None)


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
