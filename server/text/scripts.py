"""Scripts that are written without spaces between words, and texts from words as each script writes them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u312f\u31a0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
"""Ranges of a character class: Thai to Tibetan, Burmese, Khmer, Chinese, Japanese."""
HANGUL = "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff\uffa0-\uffdc"
"""Korean has spaces between words, and its particles are written onto the word."""

_UNSPACED = re.compile(f"[{UNSPACED}]")
_CLOSE = re.compile(f"[{UNSPACED}\u3000-\u303f\uff00-\uff65]")
"""A character that takes no space to its neighbour: of such a script, or its punctuation."""


def join_words(words: Sequence[str]) -> tuple[str, list[int]]:
    """The words as a text, and where each begins in it.

    There is a space between two words unless the sentence is in a script that has none. There, Latin words and numbers
    keep the space between them; where each word is one character, as in most Chinese corpora, their letters and digits
    have none either.

    >>> join_words(["Ann", "sings"])
    ('Ann sings', [0, 4])
    >>> [len(join_words([chr(0x5728) * 2, word, "Inc", chr(0x5DE5), chr(0x4F5C)])[0]) for word in ("Apple", "7")]
    [13, 9]
    """
    text = ""
    starts = []
    is_unspaced, by_character = _is_unspaced(words), _is_by_character(words)
    for number, word in enumerate(words):
        if number and not _touch(words[number - 1], word, is_unspaced, by_character):
            text += " "
        starts.append(len(text))
        text += word
    return text, starts


def _is_unspaced(words: Sequence[str]) -> bool:
    """Whether most words with letters are in a script without spaces."""
    lettered = [word for word in words if any(map(str.isalpha, word))]
    return 2 * sum(_UNSPACED.search(word) is not None for word in lettered) > len(lettered)


def _is_by_character(words: Sequence[str]) -> bool:
    return all(_num_characters(word) == 1 for word in words if _UNSPACED.search(word))


def _num_characters(word: str) -> int:
    return sum(not unicodedata.category(character).startswith("M") for character in word)


def _touch(before: str, after: str, is_unspaced: bool, by_character: bool) -> bool:
    """Whether no space is between the two."""
    close = [_CLOSE.match(before, len(before) - 1) is not None, _CLOSE.match(after) is not None]
    if not is_unspaced:
        return all(close)
    return any(close) or (by_character and len(before) == 1 and len(after) == 1)
