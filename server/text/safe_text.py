"""One output's token ids to the text that its client may have; knows nothing of requests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from server.phrases import PhraseMatcher
from server.text.banned_text import BannedText
from server.text.detokenizer import Detokenizer
from server.text.tokenizer import Tokenizer


class SafeText:
    """The detokenizer and, behind it, the guard against banned phrases, as one.

    Once `stop_string` or `has_banned` is set the text has ended, and the deltas that were handed out are all of it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        stop: Sequence[str],
        banned: PhraseMatcher | None,
        written: Collection[int] = (),
    ) -> None:
        """``written``: ids of special tokens that stand in the text."""
        self._detokenizer = Detokenizer(tokenizer, prompt_ids, stop, written)
        self._guard = None if banned is None else BannedText(banned)
        self.may_end = bool(stop) or banned is not None
        """Whether the text itself may end the output."""
        self.push: Callable[[int], str] = self._detokenizer.push if self._guard is None else self._push
        """The delta that a token makes safe; often empty."""

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, which has no part of it."""
        return None if self.has_banned else self._detokenizer.stop_string

    @property
    def has_banned(self) -> bool:
        """Whether the text was ended before a banned phrase."""
        return self._guard is not None and self._guard.found

    def _push(self, token_id: int) -> str:
        return self._guarded(self._detokenizer.push(token_id))

    def finish(self) -> str:
        """The last delta: what was held back, now that no more tokens will come."""
        delta = self._guarded(self._detokenizer.finish())
        return delta if self._guard is None else delta + self._guard.finish()

    def _guarded(self, delta: str) -> str:
        return delta if self._guard is None else self._guard.push(delta)
