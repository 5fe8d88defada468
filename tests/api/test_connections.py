"""The server holds a bounded number of connections, in all and from each address."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket

import pytest
import uvloop

from server.api.http import connections
from server.api.http.client_address import TrustedProxies
from server.api.http.connections import Connections, affordable
from server.api.http.errors import TooManyConnections
from server.api.http.listener import accepting, bind
from server.api.run import http_server
from tests.api.raw import connected, parsed, read_all
from tests.api.scripted import happens
from tests.api.shell import listening, shell

NOBODY = TrustedProxies([])
GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"


def is_served(connection: socket.socket) -> bool:
    connection.sendall(GET)
    return connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("setting", ["max_connections", "max_connections_per_address"])
def test_a_connection_too_many_is_a_503_and_others_go_on(setting):
    with listening(shell(**{setting: 3})) as port, contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(port)) for _ in range(3)]
        assert all(map(is_served, held))
        with connected(port) as refused:
            answer = parsed(read_all(refused))
        assert (answer.status, answer.error["code"]) == (503, "too_many_connections")
        assert setting in answer.error["message"] and "3" in answer.error["message"]
        assert "retry-after: 1" in answer.head and answer.connection == ["close"]
        assert all(map(is_served, held))
        held[0].close()
        assert happens(lambda: is_admitted(port))


def is_admitted(port: int) -> bool:
    with contextlib.suppress(OSError), connected(port) as newcomer:
        return is_served(newcomer)
    return False


def test_refusals_that_nobody_reads_are_bounded(monkeypatch):
    monkeypatch.setattr(connections, "MAX_REFUSED", 2)
    with listening(shell(max_connections=1)) as port, contextlib.ExitStack() as stack:
        assert is_served(stack.enter_context(connected(port)))
        ends = [stack.enter_context(connected(port)) for _ in range(6)]
        answers = []
        for end in ends:
            with contextlib.suppress(ConnectionResetError):
                answers.append(end.recv(65536))
        assert [answer[9:12] for answer in answers if answer] == [b"503", b"503"]


def test_one_address_leaves_room_for_others_and_a_network_of_ipv6_is_one():
    held = Connections(10, 2, NOBODY)
    for address in ("1.1.1.1", "1.1.1.1", "2.2.2.2", "2001:db8::1", "2001:db8::2"):
        held.open(address)
    for address in ("1.1.1.1", "2001:db8::3"):
        with pytest.raises(TooManyConnections, match="max_connections_per_address"):
            held.open(address)
    held.open("2.2.2.2")
    held.open("2001:db8:0:1::1")


def test_a_trusted_proxy_carries_the_connections_of_many():
    held = Connections(4, 1, TrustedProxies([ipaddress.ip_network("10.0.0.0/8")]))
    owners = [held.open("10.0.0.1") for _ in range(4)]
    with pytest.raises(TooManyConnections, match=r"max_connections\)"):
        held.open("10.0.0.1")
    for owner in owners:
        held.close(owner, was_refused=False)
    assert held.open("1.1.1.1") is not None


def test_connections_that_end_leave_nothing_behind():
    held = Connections(10, 10, NOBODY)
    for i in range(100):
        held.close(held.open(f"10.0.0.{i}"), was_refused=False)
    assert not held._by_address and held._total == 0


def test_never_more_connections_than_open_files_allow(monkeypatch):
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (1024, 1024))
    assert affordable(4096) < 1024 - connections.MAX_REFUSED
    assert affordable(100) == 100


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="needs Linux")
def test_a_peer_that_vanished_or_reads_nothing_is_noticed_within_a_minute():
    with bind("127.0.0.1", 0) as listener, connected(listener.getsockname()[1]):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, interval, count = (
                accepted.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + interval * count <= 60
            assert 0 < accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 60_000
            assert 0 < accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) <= 128 * 1024


def test_many_clients_that_come_at_once_are_accepted_within_a_few_turns_of_the_event_loop() -> None:
    async def main() -> None:
        http = http_server(shell())
        with bind("127.0.0.1", 0) as listener, contextlib.ExitStack() as clients:
            serving = asyncio.create_task(http.serve(sockets=accepting(listener)))
            while not http.started:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            for _ in range(64):
                clients.enter_context(socket.create_connection(listener.getsockname()))
            for _ in range(20):
                await asyncio.sleep(0)
            num_accepted = len(http.server_state.connections)
            http.hurry()
            http.should_exit = True
            await serving
        assert num_accepted == 64

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main(), 60))


def test_the_port_is_closed_when_the_server_has_stopped() -> None:
    async def main() -> tuple[str, int]:
        http = http_server(shell())
        with bind("127.0.0.1", 0) as listener:
            address = listener.getsockname()
            serving = asyncio.create_task(http.serve(sockets=accepting(listener)))
            while not http.started:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            http.should_exit = True
            await serving
        return address

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        address = runner.run(asyncio.wait_for(main(), 60))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=10)
