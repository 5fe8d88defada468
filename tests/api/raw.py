"""Raw bytes to a server on a loopback port, and what comes back."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any


@dataclass
class Answer:
    """One answer: its head in lower case."""

    status: int
    head: str
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found

    @property
    def connection(self) -> list[str]:
        """The values of its Connection headers."""
        return [line.partition(": ")[2] for line in self.head.split("\r\n") if line.startswith("connection:")]


def connected(port: int, timeout: float = 60) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=timeout)


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    found = b""
    while chunk := connection.recv(65536):
        found += chunk
    return found


def talk(port: int, *parts: bytes) -> Answer:
    """Send raw bytes; the one answer that comes back before the server closes."""
    with connected(port) as connection:
        for part in parts:
            connection.sendall(part)
        return parsed(read_all(connection))


def parsed(data: bytes) -> Answer:
    head, _, body = data.partition(b"\r\n\r\n")
    return Answer(int(head.split()[1]), head.decode().lower(), body)
