"""The default way from labelled tokens to entities: whole words, joined by where they stand in the text.

1. Tokens become *units*. In scripts that put spaces between words, the pieces of one word are one unit, so an entity
   never ends inside a word. In Chinese, Japanese, Korean, Thai and their like a unit is a token. Tokens that share a
   character, such as the bytes of an emoji or the letters of a Hangul syllable, are one unit always; where they share
   it in a chain, each character of a script without spaces is one. A mark belongs to the character that it stands on,
   also where the tokenizer takes it off, and an invisible joiner to the word around it.
2. A unit's type is the one with the highest probability, all places of a type taken together (B- and I-, for example;
   see `server.text.tag_schemes`), averaged over its tokens.
3. A unit continues the entity before it if it is of the same type and nothing but spaces lies between (a blank line
   parts them), unless it begins a new one.
4. It begins a new one if B- is likelier than I- at its first token, as in ``Alice Bob``. But not where it touches the
   unit before it in a script with spaces: inside ``maria@example.com`` a B- is a tagger's slip, while between two
   Chinese names, written without a space, it is what parts them.
5. A score is the mean, over the entity's units, of the probability of its type.

Dimension key
    T  tokens
    L  labels
    K  types: labels without their prefix
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.text.edges import Edges
from server.text.entities import Entity, TaggedText
from server.text.scripts import HANGUL, UNSPACED
from server.text.tag_schemes import scheme_of

_UNSPACED = re.compile(f"[{UNSPACED}{HANGUL}]")
"""Also Korean, whose particles are written onto the word."""

_BLANK_LINE = re.compile(r"\n\s*\n")


@dataclass(eq=False)
class _Unit:
    start: int
    end: int
    tokens: list[int]
    """Rows of T."""


@dataclass(frozen=True)
class _Tagset:
    types: Sequence[str]
    member_LK: NDArray[np.float32]
    """1 where the label is of the type."""
    begins_LK: NDArray[np.float32]
    """1 where the label, besides, begins an entity."""
    ends_LK: NDArray[np.float32]
    """1 where the label, besides, ends an entity, and none of its type begins one."""


@dataclass
class _Span:
    type_id: int
    start: int
    end: int
    scores: list[float]


def joined_entities(tagged: TaggedText) -> list[Entity]:
    """All spans in order, those of ``O`` included; none overlap, and ``word`` is the text's own slice."""
    tagset = _tagset(tagged.labels)
    types_TK = tagged.probabilities_TL @ tagset.member_LK
    begins_TK = tagged.probabilities_TL @ tagset.begins_LK
    ends_TK = tagged.probabilities_TL @ tagset.ends_LK
    spans: list[_Span] = []
    has_ended: int | None = None
    for unit in _units(tagged):
        mean_K = types_TK[unit.tokens].mean(axis=0)
        type_id = int(mean_K.argmax())
        first = unit.tokens[0]
        begins = has_ended == type_id or bool(begins_TK[first, type_id] * 2 >= types_TK[first, type_id])
        if not spans or spans[-1].type_id != type_id or _is_apart(tagged.text, spans[-1].end, unit.start, begins):
            spans.append(_Span(type_id, unit.start, unit.end, []))
        spans[-1].end = unit.end
        spans[-1].scores.append(float(mean_K[type_id]))
        last = unit.tokens[-1]
        has_ended = type_id if ends_TK[last, type_id] * 2 > types_TK[last, type_id] else None
    return [_entity(span, tagset.types[span.type_id], tagged.text) for span in spans]


def _entity(span: _Span, label: str, text: str) -> Entity:
    # A sum of float32 probabilities can pass 1 by a rounding.
    score = min(float(np.mean(span.scores)), 1.0)
    return Entity(label=label, score=score, word=text[span.start : span.end], start=span.start, end=span.end)


def _units(tagged: TaggedText) -> list[_Unit]:
    units: list[_Unit] = []
    last_word: int | None = None
    edges = Edges(tagged.text)
    for token, (raw_start, raw_end) in enumerate(tagged.offsets):
        start, end = _without_spaces(tagged.text, raw_start, raw_end)
        if start == end:
            continue
        # A tokenizer that drops accents leaves them out.
        end = edges.behind_marks(end)
        word = tagged.word_ids[token]
        if units and (start < units[-1].end or (word == last_word and _inside_word(tagged.text, units[-1].end, start))):
            units[-1].end = max(units[-1].end, end)
            units[-1].tokens.append(token)
        else:
            units.append(_Unit(start, end, [token]))
        last_word = word
    return [part for unit in units for part in _characters(tagged, unit)]


def _characters(tagged: TaggedText, unit: _Unit) -> list[_Unit]:
    """In a script without spaces a chain of tokens that each share a character with the next comes apart again."""
    if len(unit.tokens) == 1 or unit.end - unit.start == 1 or not _UNSPACED.search(tagged.text, unit.start, unit.end):
        return [unit]
    parts: dict[int, _Unit] = {}
    for place in range(unit.start, unit.end):
        if place - 1 in parts and _is_mark(tagged.text[place]):
            parts[place] = parts[place - 1]
            parts[place].end = place + 1
        elif not tagged.text[place].isspace():
            parts[place] = _Unit(place, place + 1, [])
    for token in unit.tokens:
        for part in dict.fromkeys(parts[place] for place in range(*tagged.offsets[token]) if place in parts):
            part.tokens.append(token)
    return [part for part in dict.fromkeys(parts.values()) if part.tokens]


def _without_spaces(text: str, start: int, end: int) -> tuple[int, int]:
    """Byte-level tokens carry the space before them."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _inside_word(text: str, end: int, start: int) -> bool:
    """Whether a word of a script with spaces goes on from ``end`` to ``start``: soft hyphens and joiners are no gap."""
    is_closed = all(unicodedata.category(character) == "Cf" for character in text[end:start])
    return is_closed and _is_word_character(text[end - 1]) and _is_word_character(text[start])


def _is_word_character(character: str) -> bool:
    return (character.isalnum() or _is_mark(character)) and not _UNSPACED.match(character)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


def _is_apart(text: str, end: int, start: int, begins: bool) -> bool:
    """Whether a unit at ``start`` is a new entity after one of its own type that stops at ``end``."""
    touches = end == start and not _UNSPACED.search(text, start - 1, start + 1)
    return (begins and not touches) or _BLANK_LINE.search(text, end, start) is not None


def _tagset(labels: Sequence[str]) -> _Tagset:
    tags = list(scheme_of(labels).tags.values())
    types = list(dict.fromkeys(tag.type for tag in tags))
    # In IOE an entity is parted from the next by its end; in all other schemes a beginning says it.
    begun = {tag.type for tag in tags if tag.place in ("begin", "single")}
    member_LK = np.zeros((len(labels), len(types)), dtype=np.float32)
    begins_LK, ends_LK = np.zeros_like(member_LK), np.zeros_like(member_LK)
    for row, tag in enumerate(tags):
        column = types.index(tag.type)
        member_LK[row, column] = 1
        begins_LK[row, column] = tag.place in ("begin", "single")
        ends_LK[row, column] = tag.place == "end" and tag.type not in begun
    return _Tagset(types, member_LK, begins_LK, ends_LK)
