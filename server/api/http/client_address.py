"""The address that a request is counted by: its peer's, or the client's that a trusted proxy names."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_FORWARDED_FOR = re.compile(r'(?:^|;)\s*for\s*=\s*"?([^";]+)"?', re.IGNORECASE)


class TrustedProxies:
    """Proxies whose word about their clients counts."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks

    def __bool__(self) -> bool:
        return bool(self._networks)

    def contain(self, address: str) -> bool:
        """Whether this peer is one of them."""
        found = _parsed(address)
        return found is not None and any(found in network for network in self._networks)

    def client_of(self, peer: str, headers: Headers) -> str:
        """The nearest address outside the trusted proxies; the peer's if no trusted proxy names one.

        X-Forwarded-For is read from the right, where the nearest proxy wrote: what is left of an untrusted address
        may be the client's own invention.
        """
        if not self._networks or not self.contain(peer):
            return peer
        nearest = peer
        for hop in reversed(_hops(headers)):
            found = _parsed(hop)
            if found is None:
                break
            nearest = str(found)
            if not self.contain(nearest):
                break
        return nearest


def _hops(headers: Headers) -> list[str]:
    """The addresses that proxies have written, the nearest proxy's last."""
    if values := headers.getlist("x-forwarded-for"):
        return ",".join(values).split(",")
    elements = ",".join(headers.getlist("forwarded")).split(",")
    return [match[1] if (match := _FORWARDED_FOR.search(element)) else "" for element in elements]


def _parsed(text: str) -> Address | None:
    """An address, which may have a port.

    >>> _parsed("10.0.0.1:80"), _parsed("[::1]:80"), _parsed(" ::1 "), _parsed("unknown")
    (IPv4Address('10.0.0.1'), IPv6Address('::1'), IPv6Address('::1'), None)
    """
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found
