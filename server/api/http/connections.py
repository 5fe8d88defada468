"""How many connections the server holds, in all and from each address."""

from __future__ import annotations

import logging
import resource
from collections import Counter

from server.api.http.client_address import TrustedProxies
from server.api.http.errors import TooManyConnections
from server.caller import Caller

log = logging.getLogger("sluice.server")

SPARE_DESCRIPTORS = 64
"""Of the process's file descriptors, those that are not for clients."""
MAX_REFUSED = 256
"""Most refused connections that are answered at the same time; beyond it a connection is closed at once."""


class Connections:
    """Counts the open ones. A trusted proxy has as many as it likes, for it carries the connections of many."""

    def __init__(self, max_total: int, max_per_address: int, proxies: TrustedProxies) -> None:
        self._max_total = max_total
        self._max_per_address = max_per_address
        self._proxies = proxies
        self._total = 0
        self._num_refused = 0
        self._by_address: Counter[str] = Counter()

    def open(self, address: str) -> str | None:
        """Count one more and return what `close` takes. Raises `TooManyConnections`, and counts nothing then."""
        if self._total >= self._max_total:
            raise TooManyConnections("The server has", self._max_total, "max_connections")
        owner = None if self._proxies.contain(address) else Caller.of_address(address).id
        if owner is not None and self._by_address[owner] >= self._max_per_address:
            raise TooManyConnections("This address has", self._max_per_address, "max_connections_per_address")
        self._total += 1
        if owner is not None:
            self._by_address[owner] += 1
        return owner

    def refuse(self) -> bool:
        """Count one more that was not admitted; whether there is room to say so."""
        self._num_refused += 1
        return self._num_refused <= MAX_REFUSED

    def close(self, owner: str | None, *, was_refused: bool) -> None:
        """A connection has ended; ``owner`` is what `open` returned."""
        if was_refused:
            self._num_refused -= 1
            return
        self._total -= 1
        if owner is not None:
            self._by_address[owner] -= 1
            if not self._by_address[owner]:
                del self._by_address[owner]


def affordable(max_connections: int) -> int:
    """``max_connections``, or as many as the process's limit of file descriptors allows."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = soft - SPARE_DESCRIPTORS - MAX_REFUSED if soft != resource.RLIM_INFINITY else max_connections
    if most >= max_connections:
        return max_connections
    log.warning(
        "fewer connections than max_connections: the limit of open files is too low",
        extra={"fields": {"max_connections": max(most, 1), "open_files": soft}},
    )
    return max(most, 1)
