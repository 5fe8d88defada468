"""Text to token ids and back, by the model's own fast tokenizer; knows nothing of requests or models."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Sequence
from weakref import WeakValueDictionary

import msgspec
import tokenizers

from server.errors import InvalidParameter
from server.pieces import read_backend
from server.protocol import TokenizerFiles
from server.text.beginnings import PieceBeginnings
from server.text.piece_bounds import PieceBounds
from server.text.plain_reader import PlainReader
from server.text.token_bounds import TokenBounds
from server.vocabulary import byte_level_bytes, decoder_types, fallback_bytes, special_ids

BOUNDED_CHARACTERS = 16 * 1024
"""Shorter texts are quickly read, which tells their exact number of tokens."""


class Tokenizer:
    """One model's tokenizer. Encoding a long text takes milliseconds: call it in a thread, never on the event loop."""

    def __init__(self, files: TokenizerFiles, vocab_size: int | None = None, source_vocab_size: int = 0) -> None:
        """``source_vocab_size`` is of what an encoder-decoder model reads; 0 for other models."""
        self._vocab_size = source_vocab_size or vocab_size
        self._target_vocab_size = vocab_size
        self.files = files
        self.backend = read_backend(files)
        self.backend.no_padding()
        self.backend.no_truncation()
        self.special_ids = special_ids(self.backend)
        self.decoder_types = decoder_types(self.backend)
        self.fallback_bytes = fallback_bytes(self.backend)
        """Id and byte of each token that stands for a byte, where the tokenizer falls back to bytes."""
        self._bytes: dict[int, bytes] = {}
        self._whole_texts: dict[int, str | None] = {}

    @functools.cached_property
    def target(self) -> Tokenizer:
        """The tokenizer of what the model writes: this one, but for some encoder-decoder models."""
        if self.files.target is None and self._vocab_size == self._target_vocab_size:
            return self
        return Tokenizer(self.files.target or self.files, self._target_vocab_size)

    def encode(self, text: str, pair: str | None = None, add_special_tokens: bool = True) -> tokenizers.Encoding:
        """Whole text, never cut. Offsets count characters of the text as given.

        With ``vocab_size``, a token that the model has no row for is refused: one that was added for padding, say.
        """
        # A batch of one: unlike `encode` it lets other threads run meanwhile, and so the event loop.
        inputs = [text if pair is None else (text, pair)]
        [encoding] = self.backend.encode_batch(inputs, add_special_tokens=add_special_tokens)
        self.check_ids(encoding.ids)
        return encoding

    def at_least(self, text: str, enough: int) -> int:
        """Tokens that the text has at least, without special tokens; much quicker than `encode`. 0 for a short text.

        A text that has more than ``enough`` is read no further.
        """
        return self._bounds.at_least(text, enough) if len(text) >= BOUNDED_CHARACTERS else 0

    def beginning(self, text: str, num_tokens: int) -> str:
        """A part with the same first ``num_tokens`` tokens, special ones aside, where that is quicker to encode."""
        if len(text) < BOUNDED_CHARACTERS or not self.files.sentencepiece:
            return text
        return self._beginnings.beginning(text, num_tokens)

    @functools.cached_property
    def _beginnings(self) -> PieceBeginnings:
        return PieceBeginnings(self.files)

    @functools.cached_property
    def _bounds(self) -> TokenBounds:
        return PieceBounds(self.files) if self.files.sentencepiece else TokenBounds(self.files.tokenizer_json)

    def check_ids(self, token_ids: Sequence[int]) -> None:
        """Raise if there is a token that the model has no row for."""
        largest_id = max(token_ids, default=0)
        if self._vocab_size is not None and largest_id >= self._vocab_size:
            token = self.token_text(largest_id)
            raise InvalidParameter("inputs", token, "is a token of the tokenizer that the model does not have")

    @functools.cached_property
    def plain_reader(self) -> PlainReader:
        """Made when it is first needed: it takes as long as parsing the tokenizer."""
        return PlainReader(self.backend)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of the ids together. An id that the tokenizer does not know has no text."""
        text: str = self.backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """Text of one token standing alone, special tokens as they are written."""
        return self.decode([token_id], skip_special_tokens=False)

    def has_text(self, token_id: int) -> bool:
        """Whether decoding without special tokens looks at the token at all."""
        return token_id not in self.special_ids and self.backend.id_to_token(token_id) is not None

    def token_bytes(self, token_id: int) -> bytes:
        """A token's bytes, for a tokenizer with the ByteLevel decoder alone; none for a special token."""
        known = self._bytes.get(token_id)
        if known is None:
            token = (self.backend.id_to_token(token_id) or "") if token_id not in self.special_ids else ""
            known = self._bytes[token_id] = byte_level_bytes(token)
        return known

    def whole_text(self, token_id: int) -> str | None:
        """A token's `token_bytes` as text, or None where they are not whole characters."""
        try:
            return self._whole_texts[token_id]
        except KeyError:
            try:
                text = self.token_bytes(token_id).decode()
            except UnicodeDecodeError:
                text = None
            self._whole_texts[token_id] = text
            return text


_LIVE: WeakValueDictionary[bytes, Tokenizer] = WeakValueDictionary()
_LIVE_LOCK = threading.Lock()


def tokenizer_of(files: TokenizerFiles, vocab_size: int, source_vocab_size: int = 0) -> Tokenizer:
    """As `Tokenizer`; one object for all models with equal files, each of which would take megabytes."""
    key = hashlib.blake2b(msgspec.msgpack.encode((files, vocab_size, source_vocab_size))).digest()
    with _LIVE_LOCK:
        found = _LIVE.get(key)
        if found is None:
            _LIVE[key] = found = Tokenizer(files, vocab_size, source_vocab_size)
        return found
