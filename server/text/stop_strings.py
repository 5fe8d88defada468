"""Finds the first stop string in a text that comes in pieces; knows nothing of tokens."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on up to, and without, the first stop string.

    Held back: a tail that may grow into a stop string. *First* is the one that is complete first; of several that
    are complete at the same character, the longest. So the result does not depend on where the pieces were cut.
    Each character costs constant time, whatever the text (Knuth, Morris and Pratt).
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.found: str | None = None
        self._automata = [_Automaton(string) for string in strings]
        self._held = ""

    def push(self, text: str) -> str:
        """What can be sent now that ``text`` has come; nothing once a stop string was found."""
        if not self._automata:
            return text
        if self.found is not None:
            return ""
        buffer = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            # A list, not a generator for any(): every automaton must see every character.
            complete = [a.string for a in self._automata if a.advance(character)]
            if complete:
                self.found = max(complete, key=len)
                self._held = ""
                return buffer[: end - len(self.found)]
        safe = len(buffer) - max(a.matched for a in self._automata)
        self._held = buffer[safe:]
        return buffer[:safe]

    def finish(self) -> str:
        """The held tail: no more text will come, so it is not a stop string."""
        held, self._held = self._held, ""
        return held


class _Automaton:
    """How much of one stop string the text so far ends with."""

    def __init__(self, string: str) -> None:
        self.string = string
        self.matched = 0
        self._borders = _borders(string)

    def advance(self, character: str) -> bool:
        """Whether the stop string is complete with this character."""
        string, matched = self.string, self.matched
        while matched and string[matched] != character:
            matched = self._borders[matched - 1]
        self.matched = matched + (string[matched] == character)
        return self.matched == len(string)


def _borders(string: str) -> list[int]:
    """For each prefix, the length of the longest shorter prefix that it ends with.

    >>> _borders("abab")
    [0, 0, 1, 2]
    """
    borders = [0] * len(string)
    length = 0
    for i in range(1, len(string)):
        while length and string[i] != string[length]:
            length = borders[length - 1]
        length += string[i] == string[length]
        borders[i] = length
    return borders
