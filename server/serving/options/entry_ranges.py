"""Ranges of lists of entries: biases and penalties, each entry with an amount."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from server.phrases import folded
from server.protocol import Ready
from server.serving.options.ranges import ID, Finding, Keywords, Number, Range, TokenIds

BIAS = Number(-100, 100)
AMOUNT: Keywords = {**BIAS.keywords, "boolean": {"const": False}}


def _bias_findings(bias: Any, ready: Ready) -> Iterator[Finding]:
    if bias is True:
        yield bias, 'must contain numbers, false or "-inf"'
    elif not isinstance(bias, bool | str):
        yield from ((value, rule.replace("be", "hold amounts")) for value, rule in BIAS.findings(bias, ready))


@dataclass(frozen=True)
class Biases(Range):
    """``logit_bias``: an object of ids as strings, or a list of pairs."""

    max_entries: int

    @property
    def rule(self) -> str:
        return f'must contain at most {self.max_entries} amounts from -100 to 100, false or "-inf", each token once'

    @property
    def keywords(self) -> Keywords:
        pair = {"array": {"prefixItems": (ID, AMOUNT)}}
        return {
            "object": {
                "maxProperties": self.max_entries,
                "propertyNames": {"pattern": "^(0|[1-9][0-9]*)$"},
                "additionalProperties": AMOUNT,
            },
            "array": {"maxItems": self.max_entries, "items": pair},
        }

    def findings(self, value: Any, ready: Ready) -> Iterator[Finding]:
        if len(value) > self.max_entries:
            yield "...", f"must contain at most {self.max_entries} entries"
        entries = value.items() if isinstance(value, dict) else value
        seen = set()
        for key, bias in entries:
            # "01" and "1" would be one token twice.
            is_written_well = not isinstance(key, str) or (
                key.isascii() and key.isdigit() and key == str(int(key[:20]))
            )
            if not is_written_well or not 0 <= int(key) < ready.vocab_size:
                yield key, f"must contain token ids from 0 to {ready.vocab_size - 1}"
            if key in seen:
                yield key, "must contain each token once"
            seen.add(key)
            yield from _bias_findings(bias, ready)


@dataclass(frozen=True)
class Sequences(Range):
    """Token sequences, with an amount each where ``has_bias``."""

    max_sequences: int
    max_ids: int
    has_bias: bool

    @property
    def rule(self) -> str:
        amounts = ' with amounts from -100 to 100, false or "-inf"' if self.has_bias else ""
        return (
            f"must contain at most {self.max_sequences} sequences of 1 to {self.max_ids} token ids{amounts}, each once"
        )

    @property
    def keywords(self) -> Keywords:
        ids = TokenIds(self.max_ids, min_ids=1).keywords
        sequence = {"array": {"prefixItems": (ids, AMOUNT)}} if self.has_bias else ids
        return {"array": {"maxItems": self.max_sequences, "items": sequence}}

    def findings(self, value: Any, ready: Ready) -> Iterator[Finding]:
        if len(value) > self.max_sequences:
            yield "...", f"must contain at most {self.max_sequences} sequences"
        seen = set()
        for entry in value:
            ids, bias = entry if self.has_bias else (entry, False)
            yield from TokenIds(self.max_ids, min_ids=1).findings(ids, ready)
            yield from _bias_findings(bias, ready)
            if ids in seen:
                yield list(ids), "must contain each sequence once"
            seen.add(ids)


class Decay(Range):
    """``exponential_decay_length_penalty``."""

    rule = "must be [start, factor]: a start from 0 to the model's context, a factor from 0.01 to 100"
    keywords = MappingProxyType(
        {"array": {"prefixItems": (Number(0, "max_model_len").keywords, Number(0.01, 100).keywords)}}
    )

    def findings(self, value: Any, ready: Ready) -> Iterator[Finding]:
        start, factor = value
        if not (0 <= start <= ready.max_model_len and 0.01 <= factor <= 100):
            yield list(value), self.rule


@dataclass(frozen=True)
class Penalties(Range):
    """``penalties``: phrases and topics with a strength."""

    max_entries: int
    max_characters: int

    @property
    def rule(self) -> str:
        return (
            f"must contain at most {self.max_entries} objects, each with a phrase or a topic "
            f"of 1 to {self.max_characters} characters and a strength from 0 to 100"
        )

    @property
    def keywords(self) -> Keywords:
        return {"array": {"maxItems": self.max_entries}}

    def findings(self, value: Any, ready: Ready) -> Iterator[Finding]:  # noqa: ARG002
        if len(value) > self.max_entries:
            yield "...", f"must contain at most {self.max_entries} entries"
        for entry in value:
            texts = [text for text in (entry.phrase, entry.topic) if text is not None]
            is_text = len(texts) == 1 and folded(texts[0]).strip() and len(texts[0]) <= self.max_characters
            if not (is_text and 0 <= entry.strength <= 100):
                shown = {"phrase": entry.phrase, "topic": entry.topic, "strength": entry.strength}
                yield {name: part for name, part in shown.items() if part is not None}, self.rule


@dataclass(frozen=True)
class WeightedAdapters(Range):
    """``adapters``: names with weights."""

    max_entries: int
    max_weight: float

    @property
    def rule(self) -> str:
        return (
            f"must contain at most {self.max_entries} objects, each with the name of an adapter, once, and a weight "
            f"from -{self.max_weight:g} to {self.max_weight:g}"
        )

    @property
    def keywords(self) -> Keywords:
        return {"array": {"maxItems": self.max_entries}}

    def findings(self, value: Any, ready: Ready) -> Iterator[Finding]:  # noqa: ARG002
        if len(value) > self.max_entries:
            yield "...", f"must contain at most {self.max_entries} entries"
        seen = set()
        for entry in value:
            if not abs(entry.weight) <= self.max_weight or entry.name in seen:
                yield {"name": entry.name, "weight": entry.weight}, self.rule
            seen.add(entry.name)
