"""What all rows of a request are computed with, beside their tokens. One object for all of them, which runners read."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from server.engine.preamble import FittedAdapter, Preamble
from server.engine.sources import Source
from server.native.adapted import Deltas
from server.protocol import Generate


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """Two requests whose tokens have other keys and values, or may not share them, have other seeds."""

    cache_seed: bytes = b""
    """Start of the hash chain: sequences with different seeds share no block."""
    source: Source | None = None
    """What the encoder reads; None for models without one."""
    adapter: Deltas | None = None
    preamble: Preamble | None = None
    """Virtual tokens before the prompt."""

    @classmethod
    def of(cls, command: Generate, adapter: FittedAdapter | None = None) -> Context:
        texts = (command.tenant, command.cache_salt, command.adapter)
        parts = [blake2b(text.encode(), digest_size=16).digest() for text in texts]
        seed = b"".join(parts)
        if isinstance(adapter, Preamble):
            return cls(seed, preamble=adapter)
        if not command.source_ids:
            return cls(seed, adapter=adapter)
        source = Source(command.source_ids, seed)
        return cls(source.digest, source, adapter)

    @property
    def fitted(self) -> FittedAdapter | None:
        """The request's adapter, whatever it changes."""
        return self.preamble if self.adapter is None else self.adapter

    @property
    def num_virtual(self) -> int:
        return 0 if self.preamble is None else self.preamble.num_tokens


NO_CONTEXT = Context()
