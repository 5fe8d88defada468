"""The bytes of a model's tokens: as much of text as both the front and a worker's engine need to know."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Vocabulary(Protocol):
    """What the engine asks of a tokenizer."""

    special_ids: frozenset[int]
    """Tokens without text."""

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 that the token adds to a text, a leading space included; empty for special and unknown ids."""

    def all_bytes(self) -> Iterable[bytes]:
        """Of every token id from 0 on."""
