"""Idle blocks of the KV cache that can be found by their hash, and which of them is given up next."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

ACTIVE_S = 60.0
"""A tenant without a request for this long has no share to keep."""


class CachedBlocks:
    """While tenants are active, the one with the most idle blocks loses its least recently used one.

    So none keeps more than its share once others want theirs, and one alone may have all.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._blocks: dict[str, OrderedDict[int, None]] = {}
        """By tenant, least recently used first."""
        self._tenants: dict[int, str] = {}
        self._active_s: dict[str, float] = {}
        """When each tenant's last request came."""

    def __len__(self) -> int:
        return len(self._tenants)

    def __iter__(self) -> Iterator[int]:
        return iter(self._tenants)

    def touch(self, tenant: str) -> None:
        """A request of the tenant came."""
        self._active_s[tenant] = self._clock()

    def add(self, block: int, tenant: str) -> None:
        self._tenants[block] = tenant
        self._blocks.setdefault(tenant, OrderedDict())[block] = None

    def remove(self, block: int) -> None:
        """The block is held again; one that is not here is no error."""
        tenant = self._tenants.pop(block, None)
        if tenant is not None:
            blocks = self._blocks[tenant]
            del blocks[block]
            if not blocks:
                del self._blocks[tenant]

    def pop(self) -> int:
        """Give up the block that is missed least."""
        block = next(iter(self._blocks[self._loser()]))
        self.remove(block)
        return block

    def _loser(self) -> str:
        if len(self._blocks) == 1:
            return next(iter(self._blocks))
        since_s = self._clock() - ACTIVE_S
        last_s = {tenant: self._active_s.get(tenant, 0.0) for tenant in self._blocks}
        idle = [tenant for tenant in self._blocks if last_s[tenant] < since_s]
        if idle:
            return min(idle, key=last_s.__getitem__)
        return max(self._blocks, key=lambda tenant: len(self._blocks[tenant]))
