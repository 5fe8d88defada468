"""How streams begin, stay alive, end and break, over real sockets."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from server.api.http import sse
from server.errors import NumericalError, ServerShutdown
from server.protocol import Tokens
from server.serving.generator import ServedGenerator
from tests.api.scripted import (
    END_ID,
    MILL,
    TOKENIZER,
    Script,
    front,
    happens,
    one_token_then,
    says,
    silent,
    talks_for_ever,
)
from tests.api.shell import listening


@contextmanager
def streaming(app: FastAPI, **body: Any) -> Iterator[httpx2.Response]:
    with (
        listening(app) as port,
        httpx2.stream(
            "POST", f"http://127.0.0.1:{port}/generate", json={"inputs": "Hello", "stream": True, **body}, timeout=20
        ) as response,
    ):
        yield response


def admission_of(app: FastAPI) -> Any:
    return app.front.registry.get(ServedGenerator, None).admission


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NumericalError("Not finite."), "numerical_error"),
        (ServerShutdown("Too late."), "server_shutdown"),
        (RuntimeError("a secret"), "internal_error"),
    ],
)
def test_a_failure_after_the_first_token_is_one_error_event_and_the_last(error: Exception, code: str) -> None:
    app = front(one_token_then(error))
    with streaming(app) as response:
        assert response.status_code == 200
        events = response.read().decode().removesuffix("\n\n").split("\n\n")
    assert len(events) == 2
    head, data = events[1].split("\n")
    assert head == "event: error"
    body = json.loads(data.removeprefix("data: "))["error"]
    assert body["code"] == code and set(body) == {"message", "type", "param", "code", "request_id"}
    assert body["request_id"] == response.headers["x-request-id"]
    assert "secret" not in body["message"]
    assert not app.state.worker.running and admission_of(app).num_requests == 0


def test_the_head_does_not_wait_for_a_slow_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEAD_WAIT_S", 0.1)
    has_head = threading.Event()

    def script(command):
        while not has_head.is_set():
            yield 0.01
        yield Tokens(command.request_id, [MILL, END_ID], "stop")

    with streaming(front(script)) as response:
        assert response.status_code == 200
        has_head.set()
        text = response.read().decode()
    assert text.count("data: ") == 2


def test_a_failure_after_the_head_and_before_the_first_token_is_an_error_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEAD_WAIT_S", 0.05)
    has_head = threading.Event()

    def script(command):
        while not has_head.is_set():
            yield 0.01
        yield NumericalError("Not finite.")

    with streaming(front(script)) as response:
        assert response.status_code == 200
        has_head.set()
        assert response.read().decode().startswith("event: error\ndata: ")


def test_a_comment_is_sent_in_silence_and_only_then() -> None:
    with streaming(front(one_token_then(0.7), keep_alive_s=0.2)) as response:
        events = response.read().decode().split("\n\n")
    assert events[0].startswith("data: ") and events[-2].startswith("data: ")
    assert events[1:-2] == [": keep-alive"] * len(events[1:-2]) and len(events[1:-2]) >= 2
    steady = says("The miller counts the sacks of flour every morning", pause_s=0.15)
    with streaming(front(steady, keep_alive_s=1.2)) as response:
        assert ": keep-alive" not in response.read().decode()


def test_events_arrive_when_their_tokens_do() -> None:
    with streaming(front(says("The miller counts", pause_s=0.05))) as response:
        times = [time.monotonic() for _ in response.iter_raw()]
    assert len(times) > 3
    assert times[-1] - times[0] >= 0.05 * (len(times) - 2)


def request_bytes(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return head.encode() + b"\r\n" + content


def hang_up(connection: socket.socket, how: str) -> None:
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("script", [talks_for_ever, silent], ids=["running", "queued"])
@pytest.mark.parametrize(
    ("inputs", "stream"),
    [("Hello", True), ("Hello", False), (["Hello", "river"], False)],
    ids=["stream", "json", "list"],
)
def test_a_client_that_leaves_frees_its_blocks_within_a_second(
    how: str, script: Script, inputs: str | list[str], stream: bool
) -> None:
    app = front(script)
    worker = app.state.worker
    num_inputs = 1 if isinstance(inputs, str) else len(inputs)
    with listening(app) as port:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(request_bytes({"inputs": inputs, "stream": stream}))
        assert happens(lambda: len(worker.running) == num_inputs)
        if stream and script is talks_for_ever:
            assert connection.recv(10)
        time.sleep(0.1)
        assert len(worker.running) == num_inputs and admission_of(app).num_requests == num_inputs
        hang_up(connection, how)
        assert happens(lambda: not worker.running)
        assert happens(lambda: admission_of(app).num_requests == 0)
        assert happens(lambda: app.front.lifecycle.num_active == 0)


def test_a_queued_stream_whose_head_was_sent_is_freed_when_its_client_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEAD_WAIT_S", 0.05)
    app = front(silent)
    with listening(app) as port:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(request_bytes({"inputs": "Hello", "stream": True}))
        assert connection.recv(15).startswith(b"HTTP/1.1 200")
        connection.close()
        assert happens(lambda: not app.state.worker.running)
        assert happens(lambda: admission_of(app).num_requests == 0)


def test_others_go_on_when_a_client_leaves() -> None:
    app = front(says("The miller counts the sacks of flour", pause_s=0.02))
    with listening(app) as port:
        leavers = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
        for connection in leavers:
            connection.sendall(request_bytes({"inputs": "Hello", "stream": True}))
        with httpx2.stream(
            "POST", f"http://127.0.0.1:{port}/generate", json={"inputs": "Hello", "stream": True}
        ) as response:
            lines = response.iter_lines()
            next(lines)
            for connection in leavers:
                connection.close()
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["generated_text"] == "The miller counts the sacks of flour"
        assert happens(lambda: not app.state.worker.running)


def test_a_reader_that_stops_is_cut_off_and_its_blocks_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse.EventStream.__init__, "__kwdefaults__", {"send_timeout_s": 0.3})
    ids = TOKENIZER.encode(" the mill").ids * 40

    def floods(command):
        while True:
            yield Tokens(command.request_id, ids)
            yield 0.001

    app = front(floods)
    with listening(app) as port:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(request_bytes({"inputs": "Hello", "stream": True}))
        assert happens(lambda: bool(app.state.worker.running))
        assert happens(lambda: not app.state.worker.running)
        assert happens(lambda: admission_of(app).num_requests == 0)
        connection.close()


def test_a_stream_is_finished_after_the_servers_end_was_asked_for() -> None:
    """sse-starlette by itself ends every stream half a second after the server's ``should_exit``."""
    app = front(says("The miller counts the sacks of flour and the river runs", pause_s=0.1))
    with (
        listening(app) as port,
        httpx2.stream(
            "POST", f"http://127.0.0.1:{port}/generate", json={"inputs": "Hello", "stream": True}, timeout=20
        ) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        sse.AppStatus.handle_exit(_Exiting(), 15, None)
        got = [line for line in lines if line]
    assert json.loads(got[-1].removeprefix("data: "))["details"]["finish_reason"] == "eos_token"


class _Exiting:
    """What uvicorn's server is to the library's patched signal handler."""

    should_exit = False
    force_exit = False

    def __init__(self) -> None:
        self._captured_signals: list[int] = []
