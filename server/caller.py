"""Who a request counts against, known wherever work is shared out. Set once for each request, by the API."""

from __future__ import annotations

import ipaddress
from contextvars import ContextVar
from dataclasses import dataclass

IPV6_PREFIX_BITS = 64
"""One client can use any address below such a prefix."""


@dataclass(frozen=True)
class Caller:
    """One client, as far as the server can tell clients apart."""

    id: str = ""
    """Queues are shared fairly between ids. Empty for the server's own work."""
    tenant: str = ""
    """Prompts are cached per tenant. Empty for every client of a server without API keys."""

    @classmethod
    def of_address(cls, address: str) -> Caller:
        """A client without an API key.

        >>> Caller.of_address("2001:db8::1") == Caller.of_address("2001:db8::2")
        True
        """
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return cls(f"address {address}")
        if parsed.version == 6 and parsed.ipv4_mapped is None:
            return cls(f"address {ipaddress.ip_network((parsed, IPV6_PREFIX_BITS), strict=False)}")
        return cls(f"address {address}")

    @classmethod
    def of_key(cls, digest: bytes) -> Caller:
        """A client with an API key of this SHA-256."""
        return cls(f"key {digest.hex()}", tenant=digest.hex())


NOBODY = Caller()
_current: ContextVar[Caller] = ContextVar("caller", default=NOBODY)


def current() -> Caller:
    """The caller of the request that runs in this task."""
    return _current.get()


def set_current(caller: Caller) -> None:
    """For this task and those that it starts."""
    _current.set(caller)
