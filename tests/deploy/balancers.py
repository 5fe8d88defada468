"""The load balancers of deploy/ as real processes on loopback, and clients that go through them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import httpx2

from tests.conftest import TINY_SETTINGS
from tests.server_process import ServerProcess, started_server
from tests.system.clients import Outcome, body, eventually, generate_all

DEPLOY = Path(__file__).parents[2] / "deploy"
LONG = "The miller counts the sacks. " * 1400
"""40 KB."""

Balancer = Callable[[Sequence[str], Path], AbstractContextManager[str]]
"""Takes the replicas' addresses (host:port) and a folder; gives its own URL once it answers."""


def program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def addresses(servers: Sequence[ServerProcess]) -> list[str]:
    return [server.url.removeprefix("http://") for server in servers]


@contextmanager
def three_servers(model: Path, *flags: str) -> Iterator[list[ServerProcess]]:
    """Ready ones, started at the same time."""
    with ExitStack() as stack:
        command = ("--model", f"chat={model}", *TINY_SETTINGS, *flags)
        three = [stack.enter_context(started_server(*command)) for _ in range(3)]
        for server in three:
            server.wait_until_ready()
        yield three


@contextmanager
def haproxy(replicas: Sequence[str], folder: Path, metrics: str | None = None) -> Iterator[str]:
    """deploy/haproxy.cfg, given its addresses as compose gives them; its own numbers are at the address ``metrics``."""
    address = f"127.0.0.1:{free_port()}"
    variables = {f"SLUICE_SERVER_{number}": replica for number, replica in enumerate(replicas, start=1)}
    variables |= {"SLUICE_METRICS_BIND": metrics} if metrics else {}
    command = [required("haproxy"), "-db", "-f", str(DEPLOY / "haproxy.cfg")]
    variables["SLUICE_BIND"] = address
    with running(command, folder / "haproxy.log", f"http://{address}/readyz", variables):
        yield f"http://{address}"


@contextmanager
def nginx(replicas: Sequence[str], folder: Path) -> Iterator[str]:
    """deploy/nginx.conf with other addresses and places of files, and nothing else changed."""
    address = f"127.0.0.1:{free_port()}"
    text = (DEPLOY / "nginx.conf").read_text()
    ours = re.findall(r"^ *server replica-\d:8000 (.*);\n", text, re.MULTILINE)
    servers = "".join(f"server {replica} {ours[0]};\n" for replica in replicas)
    text = re.sub(r"(^ *server replica-\d:8000 .*;\n)+", servers, text, flags=re.MULTILINE)
    # Its own places for what nginx writes: the usual ones are the system's.
    written = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{name}_temp_path {folder}/nginx-{name};\n" for name in written)
    for before, after in (("listen 8000", f"listen {address}"), ("http {\n", f"http {{\n{places}")):
        assert before in text
        text = text.replace(before, after)
    config = folder / "nginx.conf"
    config.write_text(text)
    # "user" matters only where the master is root: its workers have to read this test's folder.
    user = " user root;" if os.getuid() == 0 else ""
    own = ["-g", f"daemon off; pid {folder}/nginx.pid;{user}"]
    with running([required("nginx"), "-c", str(config), *own], folder / "nginx.log", f"http://{address}/readyz"):
        yield f"http://{address}"


BALANCERS: dict[str, Balancer] = {"haproxy": haproxy, "nginx": nginx}


def required(name: str) -> str:
    """The program's path: a test that needs it fails without it."""
    found = program(name)
    assert found is not None, f"{name} is not installed"
    return found


@contextmanager
def running(command: Sequence[str], log: Path, url: str, variables: Mapping[str, str] = {}) -> Iterator[None]:
    """A program that is ready once it answers ``url``."""
    with log.open("wb") as stderr:
        env = {**os.environ, **variables}
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            assert eventually(lambda: _answers(url)), log.read_text()
            yield
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url).status_code == 200
    except httpx2.TransportError:
        return False


class Stream:
    """A long stream in a thread, whose first token has arrived when the constructor returns.

    With ``waits=False`` the constructor returns at once. A stream that is cut has an empty outcome.
    """

    def __init__(self, url: str, waits: bool = True, on_first_token: Callable[[], None] = lambda: None) -> None:
        self.started = threading.Event()
        self.on_first_token = on_first_token
        self.outcomes: list[Outcome] = []
        self.thread = threading.Thread(target=self._run, args=(url,), daemon=True)
        self.thread.start()
        if waits:
            assert self.started.wait(60)

    def _run(self, url: str) -> None:
        request = body("The miller counts", stream=True, max_new_tokens=450)
        try:
            self.outcomes = asyncio.run(generate_all(url, [request], self._on_token))
        except httpx2.TransportError:
            self.outcomes = [Outcome()]

    def _on_token(self) -> None:
        if not self.started.is_set():
            self.on_first_token()
            self.started.set()

    def finish(self) -> Outcome:
        self.thread.join(90)
        [outcome] = self.outcomes
        return outcome


def short_requests(url: str, number: int, text: str = "Number") -> list[Outcome]:
    requests = [body(f"{text} {i}", stream=i % 2 == 0, max_new_tokens=8, truncate=64) for i in range(number)]
    return asyncio.run(generate_all(url, requests))


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


def loads(servers: Sequence[ServerProcess]) -> list[float]:
    """Requests that each server holds now."""
    return [server.metric("sluice_admitted_requests") for server in servers]


@contextmanager
def held_stream(url: str, servers: Sequence[ServerProcess]) -> Iterator[tuple[Stream, ServerProcess]]:
    """A stream, and the one of ``servers`` that has admitted it.

    That server's worker stands still until the block ends, so the stream cannot end before.
    """
    try:
        suspend_workers(servers)
        stream = Stream(url, waits=False)
        assert eventually(lambda: sum(loads(servers)) == 1)
        [holder] = [server for server, load in zip(servers, loads(servers), strict=True) if load]
        resume_workers([server for server in servers if server is not holder])
        yield stream, holder
    finally:
        resume_workers(servers)


def suspend_workers(servers: Sequence[ServerProcess]) -> None:
    _signal_workers(servers, signal.SIGSTOP)


def resume_workers(servers: Sequence[ServerProcess]) -> None:
    _signal_workers(servers, signal.SIGCONT)


def _signal_workers(servers: Sequence[ServerProcess], number: signal.Signals) -> None:
    for server in servers:
        for pid in server.worker_pids():
            os.kill(pid, number)
