"""A vocabulary of given tokens."""

from __future__ import annotations

from collections.abc import Sequence


class Pieces:
    """Token 0 is special; the others are the given bytes."""

    special_ids = frozenset({0})

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = [b"", *tokens]

    def token_bytes(self, token_id: int) -> bytes:
        return self.tokens[token_id]

    def all_bytes(self) -> list[bytes]:
        return self.tokens
