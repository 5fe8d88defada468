"""Texts to sentences by their punctuation, and back. Knows the marks of many scripts and no language."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

ENDS_ALONE = "\u3002\uff01\uff1f\uff61\u0964\u0965\u06d4\u061f\u1362\u104b\u17d4"
"""Marks that end a sentence wherever they stand: of Chinese, Japanese, Hindi, Urdu, Arabic, Amharic, Burmese, Khmer."""
ENDS_BEFORE_SPACE = ".!?\u2026\u203d\u2047\u2048\u2049"
"""Marks that end a sentence before a space."""
CLOSERS = "\"'\u2019\u201d\u00bb\u203a)\\]}\u300d\u300f\u3011\u300b\u3009\uff09\uff3d\uff5d\u3015"
"""Quotation marks and brackets that belong to the sentence that ends before them."""
ABBREVIATIONS = frozenset(
    (
        "al", "approx", "art", "av", "bzw", "ca", "cap", "cf", "co", "d.h", "dept", "dr", "dra", "e.g", "etc", "fig",
        "i.e", "inc", "jr", "ltd", "m", "mlle", "mme", "mr", "mrs", "ms", "no", "nr", "p.ex", "pp", "prof", "sr", "sra",
        "sras", "srs", "st", "u.a", "vol", "vs", "z.b",
    )
)  # fmt: skip
"""Words, without their last dot, after which a dot ends no sentence."""
CLOSE = re.compile(
    "[\u2e80-\u2fdf\u3000-\u312f\u31a0-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)
"""A character of Chinese or Japanese, or its punctuation: no space stands beside it."""

# Each character is looked at once: no run is tried again from its middle, and none gives characters back.
_END = re.compile(
    f"[{ENDS_ALONE}]++[{ENDS_ALONE}{ENDS_BEFORE_SPACE}]*+[{CLOSERS}]*+"
    f"|(?<![{ENDS_BEFORE_SPACE}])[{ENDS_BEFORE_SPACE}]++[{CLOSERS}]*+(?=\\s|[{CLOSE.pattern[1:-1]}])"
    r"|\n\s*+"
)
_LAST_WORD = re.compile(r"[\w.]*$")
_FOLLOWING = re.compile(r"\s*+(\S)")


class Sentence(NamedTuple):
    """A part of a text, and what stands around it."""

    gap: str
    """Before it: blanks, and parts without words."""
    text: str
    tail: str = ""
    """Behind the last one: a part without words."""


def split_sentences(text: str) -> list[Sentence]:
    """The gaps and texts in turn are the text, without the blanks at its end. A line's end is a sentence's end.

    >>> [sentence.text for sentence in split_sentences("Dr. No left. Who stays? I do.")]
    ['Dr. No left.', 'Who stays?', 'I do.']
    """
    return list(sentences(text))


def sentences(text: str) -> Iterator[Sentence]:
    """As `split_sentences`, found one after the other."""
    start = 0
    for end in chain(_ends(text), [len(text)]):
        part = text[start:end]
        stripped = part.lstrip()
        if stripped.rstrip():
            yield Sentence(part[: len(part) - len(stripped)], stripped.rstrip())
            start += len(part.rstrip())


def worded_sentences(text: str) -> Iterator[Sentence]:
    """As `sentences`, but a part without words, such as a line of dashes or emoji, stands in a gap or behind the last.

    >>> list(worded_sentences("One. ... Two. !!!"))
    [Sentence(gap='', text='One.', tail=''), Sentence(gap=' ... ', text='Two.', tail=' !!!')]
    """
    gap = ""
    last = None
    for sentence in sentences(text):
        if not has_words(sentence.text):
            gap += sentence.gap + sentence.text
            continue
        if last is not None:
            yield last
        last = Sentence(gap + sentence.gap, sentence.text)
        gap = ""
    if last is not None:
        yield last if is_blank(gap) else last._replace(tail=gap)


def has_words(text: str) -> bool:
    """Whether the text has a letter or a digit of any script.

    >>> has_words("\u2014 \u266a!"), has_words("1"), has_words("\u6c34")
    (False, True, True)
    """
    return any(map(str.isalnum, text))


def is_blank(text: str) -> bool:
    """Whether nothing in the text is visible: it has only spaces, control and format characters.

    >>> is_blank(" " + chr(0)), is_blank(" .")
    (True, False)
    """
    return all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text)


def _ends(text: str) -> Iterator[int]:
    """Where sentences end."""
    for match in _END.finditer(text):
        if match[0][:1] != "." or _is_end(text, match):
            yield match.end()


def _is_end(text: str, dot: re.Match[str]) -> bool:
    """Whether a dot ends a sentence, and not a word such as an abbreviation or an initial."""
    if dot[0] != ".":
        return True
    following = _FOLLOWING.match(text, dot.end())
    if following is not None and following[1].islower():
        return False
    word = _last_word(text, dot.start())
    is_initial = len(word) == 1 and word.isupper()
    return not is_initial and word.lower() not in ABBREVIATIONS


def _last_word(text: str, end: int) -> str:
    match = _LAST_WORD.search(text[max(0, end - 32) : end])
    return match[0] if match else ""


def join_sentences(gaps: Sequence[str], texts: Sequence[str]) -> str:
    """Texts that took the places of sentences. Line ends stay; else one space, or none in Chinese and Japanese.

    >>> join_sentences(["", " ", chr(10)], ["Ja.", "Nein.", "Nun?"])
    'Ja. Nein.\\nNun?'
    """
    joined = ""
    for gap, text in zip(gaps, texts, strict=True):
        joined += gap_before(joined, gap, text) + text if text else ""
    return joined


def gap_before(before: str, gap: str, text: str) -> str:
    """What stands between a text and the next one; ``gap`` is what stood between their sources."""
    if not before or "\n" in gap or not is_blank(gap):
        return gap
    return "" if CLOSE.match(before[-1]) or CLOSE.match(text) else " "
