"""Text to token ids and back, by the model's own fast tokenizer; knows nothing of requests or models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import tokenizers

from server.errors import InvalidParameter
from server.protocol import TokenizerFiles


class Tokenizer:
    """One model's tokenizer. Encoding a long text takes milliseconds: call it in a thread, never on the event loop."""

    def __init__(self, files: TokenizerFiles, vocab_size: int | None = None) -> None:
        self._vocab_size = vocab_size
        self.files = files
        self.backend = tokenizers.Tokenizer.from_str(files.tokenizer_json)
        self.backend.no_padding()
        self.backend.no_truncation()
        added = self.backend.get_added_tokens_decoder()
        self.special_ids: frozenset[int] = frozenset(id_ for id_, token in added.items() if token.special)
        self.decoder_types = _decoder_types(self.backend.decoder)
        """Names of the steps that turn tokens into text, such as ``["Replace", "ByteFallback", "Fuse"]``."""
        self.fallback_bytes = self._fallback_bytes()
        """Id and byte of each token that stands for a byte, where the tokenizer falls back to bytes."""
        self._bytes: dict[int, bytes] = {}

    def encode(self, text: str, pair: str | None = None, add_special_tokens: bool = True) -> tokenizers.Encoding:
        """Whole text, never cut. Offsets count characters of the text as given.

        With ``vocab_size``, a token that the model has no row for is refused: one that was added for padding, say.
        """
        # A batch of one: unlike `encode` it lets other threads run meanwhile, and so the event loop.
        inputs = [text if pair is None else (text, pair)]
        [encoding] = self.backend.encode_batch(inputs, add_special_tokens=add_special_tokens)
        largest_id = max(encoding.ids, default=0)
        if self._vocab_size is not None and largest_id >= self._vocab_size:
            token = self.token_text(largest_id)
            raise InvalidParameter("inputs", token, "is a token of this model's tokenizer that the model does not have")
        return encoding

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

    def _fallback_bytes(self) -> dict[int, bytes]:
        if "ByteFallback" not in self.decoder_types:
            return {}
        ids = {value: self.backend.token_to_id(f"<0x{value:02X}>") for value in range(256)}
        return {id_: bytes([value]) for value, id_ in ids.items() if id_ is not None}


def _decoder_types(decoder: Any) -> list[str]:
    """Leaves of a decoder's tree, in order; none for a tokenizer without a decoder."""
    if decoder is None:
        return []
    tree = json.loads(decoder.__getstate__())
    return [step["type"] for step in tree.get("decoders", [tree])]


def byte_level_bytes(token: str) -> bytes:
    """The bytes that a byte-level token's characters stand for.

    An added token is written as it is; one that has a character outside the byte alphabet stands for itself.

    >>> byte_level_bytes("\u0120a"), byte_level_bytes("a b")
    (b' a', b'a b')
    """
    try:
        return bytes(BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:
        return token.encode()


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: a printable byte of Latin-1 is its own character, the others come from 256 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + i): value for i, value in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()
