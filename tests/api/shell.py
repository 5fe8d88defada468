"""The web application over workers that do not exist, for tests of what stands around them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from server.api.app import build_app
from server.api.http.hosts import AllowedHosts
from server.api.http.listener import bind
from server.api.run import HttpServer, http_server
from server.config import ModelConfig, ServeConfig
from server.protocol import Ready


@dataclass
class FakeClient:
    model: ModelConfig
    ready: Ready | None = None
    state: str = "starting"
    num_running: int = 0


@dataclass
class FakeSupervisor:
    """Answers what a probe asks; holds a client that never takes work for each model."""

    config: ServeConfig
    live: bool = True
    is_up: bool = True
    clients: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.clients = {model.name: FakeClient(model) for model in self.config.models}

    def is_live(self) -> bool:
        return self.live

    def is_ready(self) -> bool:
        return self.is_up


def shell(**settings: Any) -> FastAPI:
    """The application whose models are still being loaded: a sound request for work is answered 503 `starting`."""
    config = ServeConfig(models=(ModelConfig(name="tiny", path="nowhere"),), **settings)
    return build_app(config, FakeSupervisor(config))  # type: ignore[arg-type]


def client_of(app: FastAPI, client: tuple[str, int] = ("testclient", 50000)) -> TestClient:
    """``client`` is the address and port that requests come from."""
    return TestClient(app, raise_server_exceptions=False, client=client)


@contextlib.contextmanager
def listening(app: FastAPI, hosts: AllowedHosts | None = None) -> Iterator[int]:
    """The application behind the real HTTP server on a free loopback port, in a thread."""
    with http_thread(app, hosts) as (port, _):
        yield port


@contextlib.contextmanager
def http_thread(app: FastAPI, hosts: AllowedHosts | None = None) -> Iterator[tuple[int, HttpServer]]:
    """The same, and the server: its ``should_exit`` ends it."""
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = http_server(app, hosts)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield port, server
    finally:
        server.should_exit = True
        thread.join(10)
