"""The bytes of a model's tokens: as much of text as both the front and a worker's engine need to know."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Protocol

import tokenizers

from server.protocol import TokenizerFiles


class Vocabulary(Protocol):
    """What the engine asks of a tokenizer."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens without text."""

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 that the token adds to a text, a leading space included; empty for special and unknown ids."""

    def all_bytes(self) -> Iterable[bytes]:
        """Of every token id from 0 on."""

    def __hash__(self) -> int:
        """What is made of a vocabulary is kept for the next who asks."""


class TokenBytes:
    """The `Vocabulary` of a tokenizer of any kind, as wide as the model's logits.

    A byte-level token is its bytes, and so is a token that stands for a byte (``<0xE4>``). Any other token's text is
    what it adds to a text after a word. Decoders that clean up (WordPiece, a stripped first space) may give a little
    less than the tokens' bytes joined, and so the front looks at the final text once more.
    """

    def __init__(self, files: TokenizerFiles, vocab_size: int) -> None:
        self._files = files
        self._vocab_size = vocab_size
        self._bytes: list[bytes | None] = [None] * vocab_size

    # Parsed when it is first needed: that takes longer than much else for which a model's users wait.

    @cached_property
    def _backend(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self._files.tokenizer_json)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return special_ids(self._backend)

    @cached_property
    def _types(self) -> list[str]:
        return decoder_types(self._backend)

    @cached_property
    def _suffix(self) -> str:
        """What the BPEDecoder takes for the end of a word."""
        suffix: str = decoder_tree(self._backend)[0]["suffix"]
        return suffix

    @cached_property
    def _fallback(self) -> dict[int, bytes]:
        return fallback_bytes(self._backend)

    @cached_property
    def _context(self) -> list[int]:
        """A token that is a word, for others to stand after: decoders treat only a text's first token apart."""
        for token_id in range(self._vocab_size):
            if token_id in self.special_ids or token_id in self._fallback:
                continue
            if self._backend.id_to_token(token_id) and self._backend.decode([token_id]).strip().isalpha():
                return [token_id]
        return []

    @cached_property
    def _context_text(self) -> str:
        text: str = self._backend.decode(self._context)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self._vocab_size:
            return b""
        known = self._bytes[token_id]
        if known is None:
            known = self._bytes[token_id] = self._find(token_id)
        return known

    def all_bytes(self) -> Iterable[bytes]:
        return map(self.token_bytes, range(self._vocab_size))

    def _find(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id)
        if token is None or token_id in self.special_ids:
            return b""
        if token_id in self._fallback:
            return self._fallback[token_id]
        if "ByteLevel" in self._types:
            return byte_level_bytes(token)
        if self._types == ["BPEDecoder"]:
            # The space comes with the word that it ends: a decoder shows it only once another word follows.
            return token.replace(self._suffix, " ").encode()
        whole: str = self._backend.decode([*self._context, token_id])
        return whole.removeprefix(self._context_text).encode()


def special_ids(backend: tokenizers.Tokenizer) -> frozenset[int]:
    """Ids of the added tokens that decoding leaves out."""
    added = backend.get_added_tokens_decoder()
    return frozenset(id_ for id_, token in added.items() if token.special)


def decoder_tree(backend: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    """The steps of a tokenizer's decoder, in order; none for a tokenizer without a decoder."""
    if backend.decoder is None:
        return []
    tree = json.loads(backend.decoder.__getstate__())
    steps: list[dict[str, Any]] = tree.get("decoders", [tree])
    return steps


def decoder_types(backend: tokenizers.Tokenizer) -> list[str]:
    """Names of the steps that turn tokens into text, such as ``["Replace", "ByteFallback", "Fuse"]``."""
    return [step["type"] for step in decoder_tree(backend)]


def fallback_bytes(backend: tokenizers.Tokenizer) -> dict[int, bytes]:
    """Id and byte of each token that stands for a byte, where the tokenizer falls back to bytes."""
    if "ByteFallback" not in decoder_types(backend):
        return {}
    ids = {value: backend.token_to_id(f"<0x{value:02X}>") for value in range(256)}
    return {id_: bytes([value]) for value, id_ in ids.items() if id_ is not None}


def byte_level_bytes(token: str) -> bytes:
    """The bytes that a byte-level token's characters stand for.

    An added token is written as it is; one that has a character outside the byte alphabet stands for itself.

    >>> byte_level_bytes("\u0120a"), byte_level_bytes("a b")
    (b' a', b'a b')
    """
    try:
        return token.translate(BYTE_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


class _ByteAlphabet(dict[int, int]):
    """GPT-2's alphabet: a printable byte of Latin-1 is its own character, the others come from 256 on, in order."""

    def __init__(self) -> None:
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [value for value in range(256) if value not in printable]
        super().__init__({value: value for value in printable} | {256 + i: value for i, value in enumerate(others)})

    def __missing__(self, character: int) -> int:
        """What is no byte, and no character of Latin-1 either."""
        return 0xFFFF


BYTE_ALPHABET = _ByteAlphabet()
