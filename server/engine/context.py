"""What all rows of a request are computed with, beside their tokens. One object for all of them, which runners read."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from server.protocol import Generate


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """Two requests whose tokens have other keys and values, or may not share them, have other seeds."""

    cache_seed: bytes = b""
    """Start of the hash chain: sequences with different seeds share no block."""

    @classmethod
    def of(cls, command: Generate) -> Context:
        parts = [blake2b(text.encode(), digest_size=16).digest() for text in (command.tenant, command.cache_salt)]
        return cls(b"".join(parts))


NO_CONTEXT = Context()
