"""Watching one sequence's tokens for phrases, by the tokens' bytes; knows neither requests nor blocks."""

from __future__ import annotations

import codecs

from server.phrases import PhraseMatcher, PhraseScan
from server.vocabulary import Vocabulary

__all__ = ["PhraseMatcher", "PhraseWatch"]


class PhraseWatch:
    """One sequence's place in a matcher, a token at a time from its first output token on.

    Knows at which output token each character of a partial match began, also where a character's bytes are spread
    over several tokens. A phrase counts as complete with its last character; a sequence that goes back gets a new
    watch, which its remaining tokens are pushed to. These may then end with the beginning of another phrase, which
    the tokens that are gone had made harmless: what is held now may be more than was held before.
    """

    __slots__ = ("_num_tokens", "_pending", "_pending_start", "_scan", "_vocabulary")

    def __init__(self, matcher: PhraseMatcher, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._scan = PhraseScan(matcher)
        self._num_tokens = 0
        self._pending = b""
        """The bytes of an unfinished character."""
        self._pending_start = 0
        """The token that it began with."""

    @property
    def num_held(self) -> int:
        """Tokens at the end that may still become part of a phrase, those of an unfinished character included."""
        starts = [self._pending_start] if self._pending else []
        if (first := self._scan.first_mark) is not None:
            starts.append(first)
        return self._num_tokens - min(starts) if starts else 0

    def push(self, token_id: int) -> int | None:
        """Take a token. The output position of the token with which the phrase begins that is now complete, if any.

        Of several, the earliest.
        """
        position, self._num_tokens = self._num_tokens, self._num_tokens + 1
        data = self._pending + self._vocabulary.token_bytes(token_id)
        # As the front's detokenizer decodes: what is no UTF-8 becomes replacement characters.
        text, num_decoded = codecs.utf_8_decode(data, "replace", False)
        mark = self._pending_start if self._pending else position
        starts = []
        for character in text:
            starts.append(self._scan.advance(character, mark))
            mark = position
        self._pending, self._pending_start = data[num_decoded:], mark
        return min((start for start in starts if start is not None), default=None)

    def completes(self, token_id: int) -> bool:
        """Whether a phrase would be complete with the token; changes nothing."""
        return self.fork().push(token_id) is not None

    def fork(self) -> PhraseWatch:
        """The same place for a copy of the sequence; afterwards neither changes the other."""
        copy = object.__new__(PhraseWatch)
        copy._vocabulary = self._vocabulary
        copy._scan = self._scan.fork()
        copy._num_tokens = self._num_tokens
        copy._pending, copy._pending_start = self._pending, self._pending_start
        return copy
