"""A request that arrives as the server ends is refused and not lost, so that a load balancer gives it to another."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import TINY_SETTINGS
from tests.server_process import running_server
from tests.system.clients import eventually

pytestmark = pytest.mark.timeout(240)


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionError:
        return False
    return True


def test_a_connection_from_before_the_port_closed_is_still_answered(tiny_llama: Path):
    with running_server("--model", f"chat={tiny_llama}", *TINY_SETTINGS) as server:
        port = int(server.url.rpartition(":")[2])
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as early:
            early.connect()
            server.signal(signal.SIGTERM)
            assert eventually(lambda: not is_open(port))
            early.request("POST", "/generate", json.dumps({"inputs": "late"}), {"Content-Type": "application/json"})
            refused = early.getresponse()
            assert (refused.status, json.load(refused)["error"]["code"]) == (503, "draining")
            assert refused.headers["connection"] == "close"
            assert refused.headers["x-should-retry"] == "true"
        assert server.wait() == 0
