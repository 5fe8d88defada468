"""What a tagger's labels say: the type of an entity, and the place of a token in it.

These schemes are read: BIO (and its older form, where B- only parts neighbours), IOE, BIOES, BILOU, BMES and BMEWO, as
``B-PER``, ``B_PER``, ``PER-B`` or ``PER_B``, with the place in upper or lower case; and plain types without a place,
such as ``PER``. The labels decide together: ``S-BAHN`` is a type of its own beside ``B-PER`` and ``I-PER``, and a
single word beside ``E-PER``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Place = Literal["begin", "inside", "end", "single", "outside"]

PLACES: Mapping[str, Place] = {
    "B": "begin", "I": "inside", "M": "inside", "E": "end", "L": "end", "S": "single", "U": "single", "W": "single",
}  # fmt: skip
SCHEMES = ("BI", "IE", "BIES", "BILU", "BMES", "BMEW")
OUTSIDE = "O"
"""The usual label of tokens that are in no entity."""
SPELLINGS = ("O", "o", "0", "outside", "none", "null", "_")
"""Of that label, the first that there is. In any case, where it is a word."""

_PREFIX = re.compile(r"(?P<letter>[BIMELSUW])(?P<dash>[-_])(?P<type>.+)", re.DOTALL)
_SUFFIX = re.compile(r"(?P<type>.+)(?P<dash>[-_])(?P<letter>[BIMELSUW])", re.DOTALL)
_LOWER_PREFIX = re.compile(r"(?P<letter>[bimelsuw])(?P<dash>[-_])(?P<type>.+)", re.DOTALL)
_LOWER_SUFFIX = re.compile(r"(?P<type>.+)(?P<dash>[-_])(?P<letter>[bimelsuw])", re.DOTALL)
_UNUSUAL = (_SUFFIX, _LOWER_PREFIX, _LOWER_SUFFIX)


@dataclass(frozen=True)
class Tag:
    """What one label says."""

    place: Place
    """``inside`` for a type without a place."""
    type: str
    """The label itself where it is outside or has no place."""


@dataclass(frozen=True)
class TagScheme:
    """The meaning of every label of one tagger."""

    tags: Mapping[str, Tag]
    outside: str | None
    """The label of tokens that are in no entity, if there is one."""
    pattern: re.Pattern[str] | None
    """How labels with a place are written. None for plain types."""

    def complete(self) -> set[str]:
        """The labels, and each type at all places of the scheme, for entities longer than those in the data.

        >>> sorted(scheme_of(["O", "B-PER"]).complete())
        ['B-PER', 'I-PER', 'O']
        """
        placed = [label for label, tag in self.tags.items() if tag.type != label]
        parts = [part for label in placed if self.pattern and (part := self.pattern.fullmatch(label))]
        letters = {part["letter"].upper() for part in parts}
        scheme = next((scheme for scheme in SCHEMES if letters <= set(scheme)), letters)
        return {*self.tags, *(_with_letter(part, letter) for part in parts for letter in scheme)}


def scheme_of(labels: Iterable[str]) -> TagScheme:
    """The scheme that the labels have together.

    >>> scheme_of(["O", "B-PER", "M-PER", "E-PER", "S-LOC"]).tags["S-LOC"]
    Tag(place='single', type='LOC')
    >>> scheme_of(["O", "PER", "S-BAHN"]).tags["S-BAHN"]
    Tag(place='inside', type='S-BAHN')
    """
    labels = list(dict.fromkeys(labels))
    outside = _outside(labels)
    inner = [label for label in labels if label != outside]
    pattern, typed = _PREFIX, _with_places(_PREFIX, inner)
    for unusual in _UNUSUAL:
        if not typed:
            pattern, typed = unusual, _with_sure_places(unusual, inner)
    tags = {label: typed.get(label, Tag("inside", label)) for label in labels}
    if outside is not None:
        tags[outside] = Tag("outside", outside)
    return TagScheme(tags, outside, pattern if typed else None)


def spans(tags: Sequence[Tag]) -> list[tuple[str, int, int]]:
    """The entities of one sentence: type, first word, last word.

    Lenient, as conlleval: an entity may begin without its begin tag, and a change of type ends one.

    >>> spans([Tag("begin", "PER"), Tag("inside", "PER"), Tag("outside", "O"), Tag("inside", "LOC")])
    [('PER', 0, 1), ('LOC', 3, 3)]
    """
    found: list[tuple[str, int, int]] = []
    start: int | None = None
    before = Tag("outside", "")
    for index, tag in enumerate([*tags, Tag("outside", "")]):
        if start is not None and _ends(before, tag):
            found.append((before.type, start, index - 1))
            start = None
        if start is None and tag.place != "outside":
            start = index
        before = tag
    return found


def _ends(before: Tag, tag: Tag) -> bool:
    """Whether the entity that ``before`` belongs to is over."""
    return before.place in ("end", "single") or tag.place in ("outside", "begin", "single") or before.type != tag.type


def _outside(labels: Sequence[str]) -> str | None:
    for spelling in SPELLINGS:
        for label in labels:
            if label == spelling or (len(spelling) > 1 and label.lower() == spelling):
                return label
    return None


def _with_letter(part: re.Match[str], letter: str) -> str:
    start, end = part.span("letter")
    letter = letter.lower() if part["letter"].islower() else letter
    return part.string[:start] + letter + part.string[end:]


def _with_places(pattern: re.Pattern[str], labels: Sequence[str]) -> dict[str, Tag]:
    """The labels with a place: those of a type that has B or I, and all of them where such a type has other letters."""
    parts = {label: part for label in labels if (part := pattern.fullmatch(label))}
    letters: dict[str, set[str]] = defaultdict(set)
    for part in parts.values():
        letters[part["type"]].add(part["letter"].upper())
    known = {type_ for type_, found in letters.items() if found & {"B", "I"}}
    if not known or not _is_sure(parts, labels, letters):
        return {}
    if len(parts) == len(labels) and any(letters[type_] - {"B", "I"} for type_ in known):
        known = set(letters)
    placed = {label: part for label, part in parts.items() if part["type"] in known}
    return {label: Tag(PLACES[part["letter"].upper()], part["type"]) for label, part in placed.items()}


def _is_sure(parts: Mapping[str, re.Match[str]], labels: Sequence[str], letters: Mapping[str, set[str]]) -> bool:
    """An underscore is common in names, such as B_CELL: there all labels have to agree, and a type has two places."""
    if any(part["dash"] == "-" for part in parts.values()):
        return True
    return len(parts) == len(labels) and any(len(found) > 1 for found in letters.values())


def _with_sure_places(pattern: re.Pattern[str], labels: Sequence[str]) -> dict[str, Tag]:
    """Only if all labels match and a type has B and another place: VITAMIN-B and e-mail are names too."""
    found = _with_places(pattern, labels)
    places = defaultdict(set)
    for tag in found.values():
        places[tag.type].add(tag.place)
    is_sure = any("begin" in of_type and len(of_type) > 1 for of_type in places.values())
    return found if is_sure and len(found) == len(labels) else {}
