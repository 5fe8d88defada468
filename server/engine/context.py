"""What all rows of a request are computed with, beside their tokens. One object for all of them, which runners read."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from server.engine.sources import Source
from server.protocol import Generate


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """Two requests whose tokens have other keys and values, or may not share them, have other seeds."""

    cache_seed: bytes = b""
    """Start of the hash chain: sequences with different seeds share no block."""
    source: Source | None = None
    """What the encoder reads; None for models without one."""

    @classmethod
    def of(cls, command: Generate) -> Context:
        parts = [blake2b(text.encode(), digest_size=16).digest() for text in (command.tenant, command.cache_salt)]
        seed = b"".join(parts)
        if not command.source_ids:
            return cls(seed)
        source = Source(command.source_ids, seed)
        return cls(source.digest, source)


NO_CONTEXT = Context()
