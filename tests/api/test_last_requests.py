"""A request that arrives as the server ends is refused and not lost, so that a load balancer gives it to another."""

from __future__ import annotations

import socket

import pytest

from server.api import run
from tests.api.raw import connected, parsed, read_all
from tests.api.scripted import front, happens, says
from tests.api.shell import http_thread


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except ConnectionError:
        return False
    return True


def test_a_connection_from_before_the_port_closed_is_still_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    # Long enough for a busy machine.
    monkeypatch.setattr(run, "LAST_WORDS_S", 3.0)
    app = front(says("The miller"))
    with http_thread(app) as (port, server), connected(port) as early:
        # A connection that has been served is the server's; one that is still in the queue goes with the port.
        early.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert early.recv(65536).startswith(b"HTTP/1.1 200")
        app.front.lifecycle.is_draining = True
        app.front.registry.refuse_new_work()
        server.should_exit = True
        assert happens(lambda: not is_open(port))
        body = b'{"inputs": "late"}'
        head = (
            "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        early.sendall((head % len(body)).encode() + body)
        refused = parsed(read_all(early))
    assert (refused.status, refused.error["code"]) == (503, "draining")
    assert "connection: close" in refused.head
    assert "x-should-retry: true" in refused.head
