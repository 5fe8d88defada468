"""Thousands of connections that are slow, endless or unread cost the front little memory and end in time."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.api.raw import connected
from tests.server_process import ServerProcess
from tests.system.clients import eventually
from tests.system.test_stop import stream_request

pytestmark = pytest.mark.timeout(240)

MIB = 2**20
HEAD = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture
def port(tiny_server: ServerProcess) -> int:
    return int(tiny_server.url.rpartition(":")[2])


@contextlib.contextmanager
def growth_below(server: ServerProcess, limit_bytes: int) -> Iterator[Callable[[], None]]:
    """Fails if the front's memory grows by more than the limit; call what it gives to look in between."""
    front = psutil.Process(server.process.pid)
    before = front.memory_info().rss

    def look() -> None:
        grown = front.memory_info().rss - before
        assert grown < limit_bytes, f"{grown / MIB:.1f} MiB"

    yield look
    look()


def many(port: int, number: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    return [stack.enter_context(connected(port, timeout=30)) for _ in range(number)]


def flood(connections: list[socket.socket], data: bytes, look: Callable[[], None], seconds: float) -> int:
    """Send ``data`` again and again wherever it is taken, until every connection is closed; how many are."""
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_WRITE)
        deadline_s = time.monotonic() + seconds
        while selector.get_map() and time.monotonic() < deadline_s:
            for key, _ in selector.select(0.5):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                try:
                    connection.send(data)
                except BlockingIOError:
                    continue
                except OSError:
                    selector.unregister(connection)
            look()
        return len(connections) - len(selector.get_map())


@pytest.mark.parametrize(
    "start",
    [
        HEAD + b"Content-Length: 1000000000\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n3b9aca00\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: ",
        HEAD + b"X: ",
    ],
    ids=["sized", "chunked", "probe", "trailer", "head"],
)
def test_a_hundred_endless_requests_cost_less_than_50_mb(tiny_server, port, start):
    with contextlib.ExitStack() as stack, growth_below(tiny_server, 50 * MIB) as look:
        connections = many(port, 100, stack)
        for connection in connections:
            connection.sendall(start)
        assert flood(connections, b"a" * 65536, look, 60) == 100
    assert tiny_server.get("/livez")[0] == 200


def test_a_refused_connection_costs_less_than_128_kib(tiny_server, port):
    with contextlib.ExitStack() as stack, growth_below(tiny_server, 300 * 128 * 1024) as look:
        connections = many(port, 300, stack)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(HEAD + b"X: " + b"a" * 120_000)
        look()


def test_a_thousand_slow_heads_hold_up_nobody_and_are_gone_after_their_deadline(tiny_server, port):
    with contextlib.ExitStack() as stack:
        connections = many(port, 1000, stack)
        start_s = time.monotonic()
        for connection in connections:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost:")
        waits = []
        while time.monotonic() - start_s < 5:
            asked_s = time.monotonic()
            assert tiny_server.get("/livez")[0] == 200
            waits.append(time.monotonic() - asked_s)
        assert sorted(waits)[len(waits) // 2] < 1.0
        for connection in connections:
            assert connection.recv(65536).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - start_s > 8


def test_clients_that_never_read_are_cut_off_and_leave_nothing_behind(tiny_server, port):
    """Each takes as much of its stream as fits into the buffers between; the rest of the server goes on."""
    front = psutil.Process(tiny_server.process.pid)
    num_files = front.num_fds()
    with contextlib.ExitStack() as stack, growth_below(tiny_server, 64 * MIB) as look:
        for number in range(64):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port))
            connection.sendall(stream_request(f"Number {number}", max_new_tokens=400))
        assert eventually(lambda: tiny_server.metric("sluice_admitted_requests") > 0)
        assert tiny_server.get("/livez")[0] == 200
        assert eventually(lambda: tiny_server.metric("sluice_admitted_requests") == 0, within_s=90)
        look()
    assert eventually(lambda: front.num_fds() <= num_files + 2, within_s=30)
