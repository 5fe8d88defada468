"""Where a span of a text may begin and end: not at spaces, and not between a character and the marks on it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


class Edges:
    """One text's. Made in a time that grows with the text, and then asked for any number of places."""

    def __init__(self, text: str) -> None:
        self._is_space, is_mark = _where(text, str.isspace), _where(text, _is_mark)
        self._after_spaces = _next(~self._is_space)
        self._before_spaces = _previous(~self._is_space)
        self._after_marks = _next(~is_mark)
        self._before_marks = _previous(~is_mark)

    def starts(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where a span starts that would start at each place: behind spaces, and at the character that a mark is on.

        >>> Edges("a Bob").starts(np.array([0, 1, 2])).tolist()
        [0, 2, 2]
        """
        starts = self._after_spaces[places]
        bases = np.maximum(self._before_marks[starts], 0)
        return np.where(self._is_space[bases], starts, bases)

    def ends(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where a span ends that would end before each place: before spaces, and behind marks on its last character.

        >>> Edges("cafe" + chr(0x301) + " x").ends(np.array([4, 5, 6])).tolist()
        [5, 5, 5]
        """
        return self._after_marks[self._before_spaces[places - 1] + 1]

    def behind_marks(self, place: int) -> int:
        """Behind the marks that stand on the character before ``place``."""
        return int(self._after_marks[place])

    def are_blank(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each span is empty, or of spaces alone."""
        return self._after_spaces[starts] >= ends


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


def _where(text: str, is_kind: Callable[[str], bool]) -> NDArray[np.bool_]:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    kinds = [ord(character) for character in set(text) if is_kind(character)]
    return np.isin(codes, kinds)


def _next(is_wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each place, and the one behind the last, the first wanted place from there on; the length where none is."""
    size = len(is_wanted)
    places = np.append(np.where(is_wanted, np.arange(size), size), size)
    return np.minimum.accumulate(places[::-1])[::-1]


def _previous(is_wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each place, and the one behind the last, the last wanted place up to it; -1 where none is."""
    places = np.append(np.where(is_wanted, np.arange(len(is_wanted)), -1), -1)
    return np.maximum.accumulate(places)
