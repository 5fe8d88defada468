"""The front's own guard against banned phrases in a text that comes in pieces; knows nothing of tokens."""

from __future__ import annotations

from server.phrases import PhraseMatcher, PhraseScan


class BannedText:
    """Passes a text on as long as it has no banned phrase.

    Held back: a tail that may grow into one. The engine goes back before a phrase is complete and knows only the
    tokens' bytes; this is the last look, at the text that the client gets, where a tokenizer's decoder makes another
    text of them. So it finds a phrase hardly ever, and then the stream ends: what was passed on has none, nor has
    any beginning of it.
    """

    def __init__(self, matcher: PhraseMatcher) -> None:
        """``matcher`` ignores case and may serve several texts."""
        self.found = False
        """Whether a banned phrase was complete: nothing is passed on any more."""
        self._scan = PhraseScan(matcher)
        self._held = ""
        self._num_passed = 0

    def push(self, text: str) -> str:
        """What can be sent now that ``text`` has come."""
        if self.found:
            return ""
        buffer = self._held + text
        for position, character in enumerate(text, start=self._num_passed + len(self._held)):
            start = self._scan.advance(character, position)
            if start is not None:
                self.found, self._held = True, ""
                return buffer[: start - self._num_passed]
        first = self._scan.first_mark
        safe = len(buffer) if first is None else first - self._num_passed
        self._held = buffer[safe:]
        self._num_passed += safe
        return buffer[:safe]

    def finish(self) -> str:
        """The held tail: no more text will come, so it is no banned phrase."""
        held, self._held = self._held, ""
        return held
