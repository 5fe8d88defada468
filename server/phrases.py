"""Finding phrases in a text that comes character by character: what both the front and a worker's engine need to know.

Knows nothing of tokens or requests.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache

END_OF_CASED_SCRIPTS = 0x1F000
"""No character from here on has another case."""


@lru_cache(maxsize=8192)
def fold(character: str) -> str:
    """What a character is compared by where case does not count: none, one or several characters.

    A letter, its upper case and its lower case are the same, in Turkish too: all four i's are one, and so is an i
    with the dot that ``\u0130`` leaves behind in lower case. A sharp s is ``ss``.

    >>> fold("A"), fold("\u1e9e"), fold("\u0130"), fold("\u0131"), fold("\u0307")
    ('a', 'ss', 'i', 'i', '')
    """
    return character.upper().casefold().replace("\N{COMBINING DOT ABOVE}", "")


def folded(text: str) -> str:
    """A text without regard to case, character by character.

    >>> folded("Stra\u00dfe") == folded("STRASSE")
    True
    """
    return "".join(map(fold, text))


@cache
def _variants() -> dict[str, list[str]]:
    """By unit, the characters whose `fold` begins with it and is not the character itself."""
    found: dict[str, list[str]] = {}
    for character in map(chr, range(END_OF_CASED_SCRIPTS)):
        # Not through the cache, which would lose all that is in use.
        units = fold.__wrapped__(character)
        if units and units != character:
            found.setdefault(units[0], []).append(character)
    return found


def variants(unit: str) -> list[str]:
    """The characters whose `fold` begins with ``unit``.

    >>> variants("b"), variants("\u5929") == ["\u5929"]
    (['b', 'B'], True)
    """
    return [unit, *_variants().get(unit, [])]


class PhraseTrie:
    """Phrases by their beginnings. A state is a beginning, as an integer."""

    ROOT = 0

    def __init__(self) -> None:
        self.children: list[dict[str, int]] = [{}]
        """For each state, the states that one more character leads to."""
        self.depth = [0]
        """For each state, how many characters it has."""

    def add(self, phrase: str) -> list[int]:
        """The states of the phrase, from its first character to its last."""
        if not phrase:
            raise ValueError("A phrase has at least one character.")
        states = [self.ROOT]
        for unit in phrase:
            states.append(self.children[states[-1]].setdefault(unit, len(self.children)))
            if states[-1] == len(self.children):
                self.children.append({})
                self.depth.append(len(states) - 1)
        return states[1:]


class PhraseMatcher(PhraseTrie):
    """Finds every one of a set of phrases in a text, in constant time a character (Aho and Corasick).

    A state is how much of a phrase the text so far ends with, as an integer; the matcher itself never changes, so all
    sequences with the same phrases share one. With ``fold`` case does not count, and a phrase is stripped, so that it
    is found whatever space stands before it; without, phrases are taken as they are.
    """

    def __init__(self, phrases: Iterable[str], *, fold: bool) -> None:
        super().__init__()
        self.fold = fold
        ends = [self.add(folded(phrase.strip()) if fold else phrase)[-1] for phrase in phrases]
        self.longest = [0] * len(self.children)
        """For each state, the length of the longest phrase that ends with it; 0 where none does."""
        for state in ends:
            self.longest[state] = self.depth[state]
        self._fallback = self._link()

    def units(self, character: str) -> str:
        """The characters that one character of a text is compared by."""
        return fold(character) if self.fold else character

    def advance(self, state: int, unit: str) -> int:
        """The state after one more character, which comes from `units`."""
        while (after := self.children[state].get(unit)) is None:
            if state == self.ROOT:
                return self.ROOT
            state = self._fallback[state]
        return after

    def _link(self) -> list[int]:
        """For each state, the longest shorter one that its text ends with; and phrases that end inside longer ones."""
        fallback = [self.ROOT] * len(self.children)
        # States in the order of their depth: this list grows while it is read.
        queue = list(self.children[self.ROOT].values())
        for state in queue:
            self.longest[state] = self.longest[state] or self.longest[fallback[state]]
            for unit, after in self.children[state].items():
                queue.append(after)
                shorter = fallback[state]
                while unit not in self.children[shorter] and shorter != self.ROOT:
                    shorter = fallback[shorter]
                fallback[after] = self.children[shorter].get(unit, self.ROOT)
        return fallback


class PhraseScan:
    """One text's way through a matcher, which knows where in the text a phrase began.

    Where is a *mark*: a number that comes with each character, such as its position or its token's.
    """

    __slots__ = ("_marks", "_matcher", "_state")

    def __init__(self, matcher: PhraseMatcher) -> None:
        self._matcher = matcher
        self._state = PhraseMatcher.ROOT
        self._marks: list[int] = []
        """Of each character of the partial match, the mark."""

    @property
    def first_mark(self) -> int | None:
        """Where the longest text begins that may still become a phrase; None if there is none."""
        return self._marks[0] if self._marks else None

    def advance(self, character: str, mark: int) -> int | None:
        """Take one more character. Where the phrase begins that is complete with it, the longest of several."""
        matcher = self._matcher
        start = None
        for unit in matcher.units(character):
            state = self._state = matcher.advance(self._state, unit)
            self._marks.append(mark)
            del self._marks[: len(self._marks) - matcher.depth[state]]
            if length := matcher.longest[state]:
                start = self._marks[-length] if start is None else min(start, self._marks[-length])
        return start

    def fork(self) -> PhraseScan:
        """The same place for a copy of the text; afterwards neither changes the other."""
        copy = PhraseScan(self._matcher)
        copy._state = self._state
        copy._marks = self._marks.copy()
        return copy
