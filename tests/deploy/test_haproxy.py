"""deploy/haproxy.cfg with a real HAProxy before two real servers."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.conftest import TINY_SETTINGS
from tests.server_process import ServerProcess, running_server
from tests.system.clients import Outcome, body, eventually, generate_all

CONFIG = Path(__file__).parents[2] / "deploy/haproxy.cfg"
HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")

pytestmark = [
    pytest.mark.timeout(240),
    # In continuous integration a missing HAProxy fails: TEST_HAPROXY=required.
    pytest.mark.skipif(
        HAPROXY is None and os.environ.get("TEST_HAPROXY") != "required",
        reason="haproxy is not installed (apt-get install haproxy)",
    ),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def balancer(servers: list[ServerProcess], log: Path) -> Iterator[str]:
    """HAProxy's address, once it has seen both servers."""
    assert HAPROXY is not None, "haproxy is not installed"
    address = f"127.0.0.1:{free_port()}"
    replicas = {f"SLUICE_SERVER_{i}": server.url.removeprefix("http://") for i, server in enumerate(servers, start=1)}
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [HAPROXY, "-db", "-f", CONFIG],
            env={**os.environ, "SLUICE_BIND": address, **replicas},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        try:
            assert eventually(lambda: _answers(address)), log.read_text()
            yield f"http://{address}"
        finally:
            process.kill()
            process.wait(10)


def _answers(address: str) -> bool:
    try:
        return httpx2.get(f"http://{address}/readyz").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="module")
def replicas(
    tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, ServerProcess, ServerProcess]]:
    """The balancer's URL and the two servers behind it, until the test that drains one."""
    with _replicas(tiny_llama, tmp_path_factory.mktemp("haproxy") / "log") as pair:
        yield pair


@pytest.fixture
def mortal_replicas(tiny_llama: Path, tmp_path: Path) -> Iterator[tuple[str, ServerProcess, ServerProcess]]:
    """A pair for one test alone."""
    with _replicas(tiny_llama, tmp_path / "log") as pair:
        yield pair


@contextmanager
def _replicas(tiny_llama: Path, log: Path) -> Iterator[tuple[str, ServerProcess, ServerProcess]]:
    with ExitStack() as stack:
        flags = ("--model", f"chat={tiny_llama}", *TINY_SETTINGS)
        first, second = (stack.enter_context(running_server(*flags)) for _ in range(2))
        url = stack.enter_context(balancer([first, second], log))
        yield url, first, second


class Stream:
    """A long stream in a thread, begun and not yet over when the constructor returns."""

    def __init__(self, url: str) -> None:
        self.started = threading.Event()
        self.outcomes: list[Outcome] = []
        self.thread = threading.Thread(target=self._run, args=(url,), daemon=True)
        self.thread.start()
        assert self.started.wait(60)

    def _run(self, url: str) -> None:
        request = body("The miller counts", stream=True, max_new_tokens=450)
        self.outcomes = asyncio.run(generate_all(url, [request], self.started.set))

    def finish(self) -> Outcome:
        self.thread.join(90)
        [outcome] = self.outcomes
        return outcome


def num_answered(server: ServerProcess) -> int:
    """How many requests to /generate the server has answered with 200, as far as its log has been written."""
    return sum(line.get("route") == "/generate" and line.get("status") == 200 for line in server.log_lines())


def settled(*servers: ServerProcess) -> dict[str, int]:
    """`num_answered` by URL, once every answer is in the log."""

    def is_settled(server: ServerProcess) -> bool:
        ended = server.metric("sluice_requests_total", task="generate", status="2xx")
        return server.metric("sluice_admitted_requests") == 0 and num_answered(server) == ended

    assert eventually(lambda: all(is_settled(server) for server in servers))
    return {server.url: num_answered(server) for server in servers}


def by_load(first: ServerProcess, second: ServerProcess) -> tuple[ServerProcess, ServerProcess]:
    """The server that holds the one running request, and the idle one."""
    loads = [server.metric("sluice_admitted_requests") for server in (first, second)]
    assert sorted(loads) == [0, 1]
    return (first, second) if loads[0] else (second, first)


def short_requests(url: str, number: int) -> list[Outcome]:
    requests = [body(f"Number {i}", stream=i % 2 == 0, max_new_tokens=8) for i in range(number)]
    return asyncio.run(generate_all(url, requests))


def test_a_stream_passes_token_by_token(replicas):
    url, first, second = replicas
    stream = Stream(url)
    # The client has its first token, and the server is still at work on the others.
    by_load(first, second)
    outcome = stream.finish()
    assert outcome.is_whole and len(outcome.token_ids) == 450


def test_requests_go_to_the_replica_with_fewer_of_them(replicas):
    url, first, second = replicas
    before = settled(first, second)
    stream = Stream(url)
    _, idle = by_load(first, second)
    for _ in range(3):
        assert short_requests(url, 1)[0].is_whole
    assert eventually(lambda: num_answered(idle) == before[idle.url] + 3)
    assert stream.finish().is_whole


def test_metrics_of_several_replicas_are_not_mixed(replicas):
    url, *_ = replicas
    assert httpx2.get(f"{url}/metrics").status_code == 404


def test_a_draining_replica_finishes_its_stream_and_its_new_requests_are_answered_by_the_other(replicas):
    url, first, second = replicas
    before = settled(first, second)
    stream = Stream(url)
    draining, other = by_load(first, second)
    draining.signal(signal.SIGTERM)
    assert eventually(lambda: draining.get("/readyz")[0] == 503)
    assert all(outcome.is_whole for outcome in short_requests(url, 16))
    assert stream.finish().is_whole
    assert draining.wait() == 0
    assert eventually(lambda: num_answered(other) == before[other.url] + 16)
    assert num_answered(draining) == before[draining.url] + 1


def test_requests_that_a_killed_replica_never_began_go_to_the_other(mortal_replicas):
    url, killed, other = mortal_replicas
    assert all(outcome.is_whole for outcome in short_requests(url, 4))
    before = settled(killed, other)[other.url]
    killed.process.kill()
    killed.process.wait(10)
    outcomes = short_requests(url, 16)
    assert all(outcome.is_whole for outcome in outcomes)
    assert eventually(lambda: num_answered(other) == before + 16)

    other.process.kill()
    other.process.wait(10)
    [refused] = short_requests(url, 1)
    assert (refused.status, refused.error_code, refused.headers["retry-after"]) == (503, "no_replica", "2")
