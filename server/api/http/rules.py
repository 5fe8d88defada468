"""What the connections of one server have in common."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.api.http.connections import Connections
from server.api.http.hosts import AllowedHosts
from server.api.http.outbox import Outbox


@dataclass(frozen=True)
class Rules:
    """Whom they serve, how much they take, and where they write."""

    hosts: AllowedHosts
    connections: Connections
    max_body_bytes: int
    outbox: Outbox = field(default_factory=Outbox)
