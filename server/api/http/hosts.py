"""Which names a request may call this server by.

A web page can give its own name the address of a server that listens on the reader's machine, and then ask that server
as if it were its own (DNS rebinding). The browser still sends the page's name as Host. Addresses are no names, so a
request to an address always passes; nor can a page on the internet have a name without a dot.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from server.api.http.errors import HostNotAllowed, MalformedRequest
from server.config import ServeConfig
from server.sentences import echo

ANY = "*"
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]{0,5})?")


class AllowedHosts:
    """Names that are accepted; ``*.example.com`` is every name below example.com, and ``*`` any name."""

    def __init__(self, names: Sequence[str], *, takes_local: bool = False) -> None:
        """``takes_local``: names without a dot, such as localhost, are accepted too."""
        self._any = ANY in names
        self._takes_local = takes_local
        self._names = frozenset(name.lower().rstrip(".") for name in names)
        self._suffixes = tuple(name[1:] for name in self._names if name.startswith("*."))

    def check(self, header: bytes) -> None:
        """Raise `MalformedRequest` or `HostNotAllowed` for this value of Host."""
        match = _HOST.fullmatch(header.decode("latin-1").strip().lower())
        if match is None:
            raise MalformedRequest("The Host header is not a host name or address with an optional port.")
        host = match[1].rstrip(".")
        is_local = self._takes_local and host != "" and "." not in host
        if not (self._any or is_local or host in self._names or host.endswith(self._suffixes) or _is_address(host)):
            raise HostNotAllowed(echo(host))


def allowed_hosts(config: ServeConfig, *, has_keys: bool) -> AllowedHosts:
    """What the setting says. By default: any, except on a loopback address without keys, which any page could reach."""
    if config.host_names:
        return AllowedHosts(config.host_names)
    if has_keys or not _is_loopback(config.host):
        return AllowedHosts([ANY])
    return AllowedHosts(["*.localhost", config.host], takes_local=True)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
