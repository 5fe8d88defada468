"""The kinds of ranges that an option may have, each with its words. `table` says which option has which.

NaN is outside every range, since it compares as neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from server.phrases import folded
from server.protocol import Ready

Limit = int | float | Literal["vocab_size", "max_model_len", "max_running"]
"""A number, or the name of the served model's own."""
LIMIT_NAMES = {
    "vocab_size": "the size of the vocabulary",
    "max_model_len": "the model's context",
    "max_running": "the server's max_running",
}

Keywords = Mapping[str, Mapping[str, Any]]
"""JSON Schema keywords by the JSON type that they limit. Those of parts (``items`` and so on) are such maps again."""

Finding = tuple[Any, str]
"""A wrong value, which may be an entry of a list, and what it must be."""


class Range(ABC):
    """The values that an option may have."""

    @property
    @abstractmethod
    def rule(self) -> str:
        """For the docs: what the value must be, without the model's own numbers."""

    @property
    @abstractmethod
    def keywords(self) -> Keywords:
        """The rule as far as JSON Schema can say it, without the model's own numbers."""

    @abstractmethod
    def findings(self, value: Any, ready: Ready) -> Iterator[Finding]:
        """What is wrong with a value of the right type."""


def _limit(limit: Limit, ready: Ready) -> int | float:
    return getattr(ready, limit) if isinstance(limit, str) else limit


def _shown(limit: Limit, ready: Ready | None = None) -> str:
    if isinstance(limit, str):
        return LIMIT_NAMES[limit] + (f", {getattr(ready, limit)}" if ready else "")
    return str(limit)


@dataclass(frozen=True)
class Number(Range):
    """From ``low`` to ``high``, both included unless told otherwise."""

    low: Limit
    high: Limit | None = None
    is_low_excluded: bool = False
    is_high_excluded: bool = False

    @property
    def rule(self) -> str:
        return self._rule(None)

    def _rule(self, ready: Ready | None) -> str:
        low = f"greater than {self.low}" if self.is_low_excluded else f"at least {self.low}"
        if self.high is None:
            return f"must be {low}"
        high = _shown(self.high, ready)
        if self.is_low_excluded or self.is_high_excluded:
            return f"must be {low} and {'less than' if self.is_high_excluded else 'at most'} {high}"
        return f"must be from {self.low} to {high}"

    @property
    def keywords(self) -> Keywords:
        found: dict[str, Any] = {"exclusiveMinimum" if self.is_low_excluded else "minimum": self.low}
        if not isinstance(self.high, str | None):
            found["exclusiveMaximum" if self.is_high_excluded else "maximum"] = self.high
        return {"number": found, "integer": found}

    def findings(self, value: Any, ready: Ready) -> Iterator[Finding]:
        low = _limit(self.low, ready)
        is_right = value > low if self.is_low_excluded else value >= low
        if self.high is not None:
            high = _limit(self.high, ready)
            is_right = is_right and (value < high if self.is_high_excluded else value <= high)
        if not is_right:
            yield value, self._rule(ready)


@dataclass(frozen=True)
class Count(Range):
    """How many outputs, beams or tokens; whatever is no number (``penalty_scope``'s words) is not counted."""

    high: Limit
    low: int = 1

    @property
    def rule(self) -> str:
        return Number(self.low, self.high).rule

    @property
    def keywords(self) -> Keywords:
        return Number(self.low, self.high).keywords

    def findings(self, value: Any, ready: Ready) -> Iterator[Finding]:
        # A model's own limit never forbids the least count: it is what every request without the option has.
        if not isinstance(value, str) and value != self.low:
            yield from Number(self.low, self.high).findings(value, ready)


ID: Keywords = {"integer": {"minimum": 0}}


@dataclass(frozen=True)
class TokenIds(Range):
    """One token id or a list of at most so many, each of the model's vocabulary."""

    max_ids: Limit = 1
    min_ids: int = 0

    @property
    def rule(self) -> str:
        if self.max_ids == 1:
            return "must be a token id of the model"
        least = f"{self.min_ids} to " if self.min_ids else "at most "
        return f"must contain {least}{_shown(self.max_ids)} token ids of the model"

    @property
    def keywords(self) -> Keywords:
        most = {} if isinstance(self.max_ids, str) else {"maxItems": self.max_ids}
        return {"integer": ID["integer"], "array": {"minItems": self.min_ids, **most, "items": ID}}

    def findings(self, value: Any, ready: Ready) -> Iterator[Finding]:
        ids = value if isinstance(value, tuple) else (value,)
        if len(ids) < self.min_ids:
            yield list(ids), f"must contain at least {self.min_ids} id"
        if len(ids) > _limit(self.max_ids, ready):
            yield list(ids), f"must contain at most {_limit(self.max_ids, ready)} ids"
        for token_id in ids:
            if not 0 <= token_id < ready.vocab_size:
                yield token_id, f"must contain token ids from 0 to {ready.vocab_size - 1}"


@dataclass(frozen=True)
class Texts(Range):
    """At most so many texts of limited length; blanks alone are no text where ``is_stripped``."""

    max_texts: int
    max_characters: int
    is_stripped: bool = False

    @property
    def rule(self) -> str:
        blanks = " that are not only blanks" if self.is_stripped else ""
        return f"must contain at most {self.max_texts} strings of 1 to {self.max_characters} characters{blanks}"

    @property
    def keywords(self) -> Keywords:
        text = {"string": {"minLength": 1, "maxLength": self.max_characters}}
        return {**text, "array": {"maxItems": self.max_texts, "items": text}}

    def findings(self, value: Any, ready: Ready) -> Iterator[Finding]:  # noqa: ARG002
        if len(value) > self.max_texts:
            yield list(value), f"must contain at most {self.max_texts} strings"
        for text in value:
            length = len(folded(text).strip() if self.is_stripped else text)
            if length < 1 or len(text) > self.max_characters:
                blanks = " that are not only blanks" if self.is_stripped else ""
                yield text, f"must contain strings of 1 to {self.max_characters} characters{blanks}"


@dataclass(frozen=True)
class Characters(Range):
    """One text of limited length."""

    high: int

    @property
    def rule(self) -> str:
        return f"must have 1 to {self.high} characters"

    @property
    def keywords(self) -> Keywords:
        return {"string": {"minLength": 1, "maxLength": self.high}}

    def findings(self, value: Any, ready: Ready) -> Iterator[Finding]:  # noqa: ARG002
        if not 1 <= len(value) <= self.high:
            yield value, self.rule


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
