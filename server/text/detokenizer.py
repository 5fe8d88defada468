"""One request's token ids to text that is safe to send, a token at a time; knows nothing of streams."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence

from server.text.stop_strings import StopStrings
from server.text.tokenizer import Tokenizer

MAX_PENDING = 16
"""Most tokens that wait for the rest of a character. One character takes four at most, but each may begin the next."""


class Detokenizer:
    """Turns one request's token ids into text deltas that are safe to send.

    Held back: bytes of an unfinished character, and any tail that may grow into a stop string. The deltas joined
    are what the ids add to the decoded prompt, up to and without the first stop string. Special tokens have no text,
    except those in ``written``, which stand in the text as the tokenizer writes them.
    Constant time a token. One thing differs from decoding all at once, because it must: where a tokenizer with
    byte fallback ends a run of byte tokens in the middle of a character, the whole characters before it stay.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        stop: Sequence[str] = (),
        written: Collection[int] = (),
    ) -> None:
        self._texts = _text_source(tokenizer, prompt_ids)
        if tokenizer.files.strips_text:
            self._texts = _Stripped(self._texts, begins_text=not any(map(tokenizer.has_text, prompt_ids)))
        self._written = {id_: tokenizer.backend.id_to_token(id_) or "" for id_ in written}
        self._stops = StopStrings(stop)
        self.push: Callable[[int], str] = self._push if self._written or stop else self._texts.push
        """The delta that a token makes safe; often empty."""

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, once it did: there will be no more deltas."""
        return self._stops.found

    def _push(self, token_id: int) -> str:
        mark = self._written.get(token_id)
        return self._stops.push(self._texts.push(token_id) if mark is None else self._texts.write(mark))

    def finish(self) -> str:
        """The last delta: what was held back, now that no more tokens will come."""
        last = self._stops.push(self._texts.finish())
        return last + self._stops.finish()


class _TextSource(ABC):
    """Token ids to text of whole characters, without regard to stop strings."""

    @abstractmethod
    def push(self, token_id: int) -> str: ...

    @abstractmethod
    def write(self, text: str) -> str:
        """Text that is no token's own: what was held back until now, and the text."""

    @abstractmethod
    def finish(self) -> str: ...


class _Stripped(_TextSource):
    """Without white space at the start and at the end of the whole text."""

    def __init__(self, texts: _TextSource, begins_text: bool) -> None:
        self._texts = texts
        self._is_at_start = begins_text
        self._held = ""
        """White space that is the end, unless more comes."""

    def push(self, token_id: int) -> str:
        return self._strip(self._texts.push(token_id))

    def write(self, text: str) -> str:
        return self._strip(self._texts.write(text))

    def finish(self) -> str:
        return self._strip(self._texts.finish())

    def _strip(self, delta: str) -> str:
        text = self._held + delta
        if self._is_at_start:
            text = text.lstrip()
        kept = text.rstrip()
        self._held = text[len(kept) :]
        self._is_at_start = self._is_at_start and not kept
        return kept


def _text_source(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> _TextSource:
    if [step for step in tokenizer.decoder_types if step != "Fuse"] == ["ByteLevel"]:
        return _ByteLevelSource(tokenizer)
    return _ContextSource(tokenizer, prompt_ids)


class _ByteLevelSource(_TextSource):
    """For tokenizers whose every token is a run of bytes, whatever stands before it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_inside = False
        """Whether a character has begun whose other bytes have yet to come."""

    def push(self, token_id: int) -> str:
        if not self._is_inside and (text := self._tokenizer.whole_text(token_id)) is not None:
            return text
        text = self._utf8.decode(self._tokenizer.token_bytes(token_id))
        self._is_inside = bool(self._utf8.getstate()[0])
        return text

    def write(self, text: str) -> str:
        self._is_inside = False
        return self._utf8.decode(text.encode())

    def finish(self) -> str:
        self._is_inside = False
        return self._utf8.decode(b"", final=True)


class _ContextSource(_TextSource):
    """For all other tokenizers: a token's text is what it adds to the token before it.

    One token of context is enough to know whether a word begins: decoders treat the first token apart (a leading
    space goes) and all others alike. Byte tokens (``<0xE4>``) are put together here, because a decoder gives only
    replacement characters for a run of them that is not whole yet.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        last = next((id_ for id_ in reversed(prompt_ids) if tokenizer.has_text(id_)), None)
        self._context = [] if last is None else [last]
        self._pending: list[int] = []
        self._max_pending = MAX_PENDING if "ByteLevel" in tokenizer.decoder_types else 1
        self._run: list[int] = []
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        if not self._tokenizer.has_text(token_id):
            return ""
        byte = self._tokenizer.fallback_bytes.get(token_id)
        if byte is not None:
            return self._push_byte(token_id, byte)
        end_of_run = self._end_run()
        self._pending.append(token_id)
        delta = self._pending_text()
        if delta.endswith("\N{REPLACEMENT CHARACTER}") and len(self._pending) < self._max_pending:
            return end_of_run
        self._context, self._pending = self._pending, []
        return end_of_run + delta

    def write(self, text: str) -> str:
        before = self._end_run() + self._pending_text()
        self._context, self._pending = self._pending or self._context, []
        return before + text

    def finish(self) -> str:
        return self._end_run() + self._pending_text()

    def _pending_text(self) -> str:
        if not self._pending:
            return ""
        decode = self._tokenizer.decode
        return decode(self._context + self._pending)[len(decode(self._context)) :]

    def _push_byte(self, token_id: int, byte: bytes) -> str:
        self._run.append(token_id)
        text = self._utf8.decode(byte)
        if text:
            if not self._context:
                text = self._tokenizer.decode(self._run)
            self._context, self._run = [token_id], []
        return text

    def _end_run(self) -> str:
        if not self._run:
            return ""
        self._context, self._run = self._run[-1:], []
        return self._utf8.decode(b"", final=True)
