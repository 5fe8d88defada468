"""The kinds of ranges that an option may have, each with its words. `table` says which option has which.

NaN is outside every range, since it compares as neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
