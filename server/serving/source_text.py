"""The text that an encoder-decoder model reads: its tokens with those of its languages, and what begins the output."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import tokenizers

from server.errors import InvalidParameter
from server.length_errors import InputTooLong
from server.pieces import end_of_tag
from server.protocol import Ready
from server.sentences import Words, sentence
from server.text.languages import Direction
from server.text.sentence_split import is_blank
from server.text.source_tokens import cut, source_tokens
from server.text.tokenizer import Tokenizer

ADVICE = sentence("Shorten it, or set {truncate} to cut its end.")
WITHOUT_KNOWN_TOKEN = "cannot be read: the model's vocabulary has no token for any part of this text"
AS_TOKENIZED = Direction(source=None, target=None)


@dataclass(frozen=True, kw_only=True)
class SourceReader:
    """Tokenises the texts of one request."""

    tokenizer: Tokenizer
    ready: Ready
    direction: Direction = AS_TOKENIZED
    advice: Words = ADVICE
    """What to do about a text that is too long."""

    def ids(self, source: str | list[int], truncate: int | None) -> list[int]:
        """All tokens that the encoder reads. ``truncate`` is the most to keep, with the special ones at both ends.

        Raises `InvalidRequest` for a text that is too long or has nothing that the model can read.
        """
        limit = self.ready.max_source_len
        if isinstance(source, list):
            ids, num_last = source, 0
        else:
            if truncate is None:
                self._check(self.tokenizer.at_least(source, limit), is_least=True)
            encoding, ids, num_last = source_tokens(self.tokenizer, self.direction, source, truncate)
            if truncate is None:
                self._check(len(ids))
            self._check_text(source, encoding)
        if truncate is not None:
            ids = cut(ids, num_last, truncate)
        self._check(len(ids))
        return ids

    def _check(self, num_tokens: int, *, is_least: bool = False) -> None:
        if num_tokens > self.ready.max_source_len:
            raise InputTooLong(num_tokens, self.ready.max_source_len, self.advice, is_least=is_least)

    def _check_text(self, text: str, encoding: tokenizers.Encoding) -> None:
        """Raise for a text that says nothing to the model, which would make up an output."""
        direction, unknown = self.direction, self._unknown_id
        start = end_of_tag(text) if direction.is_target_in_text else len(direction.prefix)
        own = zip(encoding.ids, encoding.offsets, encoding.special_tokens_mask, strict=True)
        has_unknown = False
        for id_, (_, end), is_added in () if is_blank(text) else own:
            if is_added or (start and end <= start):
                continue
            if id_ == unknown:
                has_unknown = True
            elif id_ not in self.tokenizer.special_ids and not is_blank(self.tokenizer.token_text(id_)):
                return
        if has_unknown:
            raise InvalidParameter("inputs", text, WITHOUT_KNOWN_TOKEN)
        raise InvalidParameter("inputs", text, "must have at least one token that is more than spaces")

    @functools.cached_property
    def _unknown_id(self) -> int | None:
        token = self.tokenizer.files.unk_token
        return None if token is None else self.tokenizer.backend.token_to_id(token)

    @property
    def start_ids(self) -> list[int]:
        """What the output follows."""
        own = self.direction.decoder_start_id
        return self.ready.start_ids if own is None else [own]
