"""``Idempotency-Key``: one key and one body are generated once, whoever asks how often."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from server.api.http import idempotency, shared_work
from server.api.http.idempotency import Idempotency
from server.errors import NumericalError, SluiceError
from server.protocol import Generate, Tokens
from tests.api.scripted import END_ID, MILL, Step, front, happens, says, talks_for_ever
from tests.api.shell import client_of, listening

BODY = {"inputs": "a", "parameters": {"max_new_tokens": 20}}
STREAM = {**BODY, "stream": True}


@dataclass
class Held:
    """A script that waits after its first token until it is let go."""

    release: threading.Event = field(default_factory=threading.Event)

    def __call__(self, command: Generate) -> Iterator[Step]:
        yield Tokens(command.request_id, [MILL])
        while not self.release.is_set():
            yield 0.005
        yield Tokens(command.request_id, [MILL])
        yield Tokens(command.request_id, [END_ID], "stop")


def keyed(key: str = "k", **more: str) -> dict[str, str]:
    return {"Idempotency-Key": key, **more}


def events(text: str) -> list[tuple[int, dict[str, Any]]]:
    """Number and data of each event."""
    return [(int(n), json.loads(data)) for n, data in re.findall(r"id: (\d+)\ndata: ?(.+)\n\n", text)]


@pytest.fixture
def held() -> Iterator[tuple[FastAPI, Held, str]]:
    script = Held()
    app = front(script)
    with listening(app) as port:
        yield app, script, f"http://127.0.0.1:{port}"


def test_a_retry_after_the_end_gets_the_same_answer_and_generates_nothing() -> None:
    app = front(says("the mill"))
    first, again = [client_of(app).post("/generate", json=BODY, headers=keyed()) for _ in range(2)]
    assert first.content == again.content
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert first.headers["x-request-id"] != again.headers["x-request-id"]
    assert len(app.state.worker.commands) == 1


def test_requests_without_a_key_and_with_other_keys_are_their_own() -> None:
    app = front(says("the mill"))
    for headers in ({}, {}, keyed("a"), keyed("b")):
        client_of(app).post("/generate", json=BODY, headers=headers)
    assert len(app.state.worker.commands) == 4


def test_a_retry_storm_generates_each_key_once(held: tuple[FastAPI, Held, str]) -> None:
    app, script, url = held

    def ask(i: int) -> bytes:
        return httpx2.post(f"{url}/generate", json=BODY, headers=keyed(f"key {i % 4}"), timeout=60).content

    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(ask, i) for i in range(12)]
        assert happens(lambda: len(app.state.worker.running) == 4)
        script.release.set()
        texts = {answer.result() for answer in answers}
    assert len(texts) == 1
    assert len(app.state.worker.commands) == 4


def test_a_stream_is_joined_from_its_beginning(held: tuple[FastAPI, Held, str]) -> None:
    app, script, url = held
    with ThreadPoolExecutor(1) as pool:
        with httpx2.stream("POST", f"{url}/generate", json=STREAM, headers=keyed(), timeout=60) as first:
            lines = first.iter_lines()
            assert next(lines) == "id: 1"
            joined = pool.submit(httpx2.post, f"{url}/generate", json=STREAM, headers=keyed(), timeout=60)
            script.release.set()
            rest = "id: 1\n" + "\n".join(lines) + "\n\n"
        told = events(joined.result().text)
    assert [number for number, _ in told] == [1, 2, 3]
    assert told == events(rest)
    assert len(app.state.worker.commands) == 1


def test_a_client_that_left_comes_back_to_where_it_was(held: tuple[FastAPI, Held, str]) -> None:
    app, script, url = held
    with httpx2.stream("POST", f"{url}/generate", json=STREAM, headers=keyed(), timeout=60) as first:
        assert next(first.iter_lines()) == "id: 1"
    assert len(app.state.worker.running) == 1
    script.release.set()
    headers = keyed(**{"Last-Event-ID": "1"})
    back = httpx2.post(f"{url}/generate", json=STREAM, headers=headers, timeout=60)
    assert [number for number, _ in events(back.text)] == [2, 3]
    assert len(app.state.worker.commands) == 1


def test_work_that_nobody_comes_back_to_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_work, "ALONE_S", 0.05)
    app = front(talks_for_ever)
    with listening(app) as port:
        with httpx2.stream("POST", f"http://127.0.0.1:{port}/generate", json=STREAM, headers=keyed()) as stream:
            next(stream.iter_lines())
        assert happens(lambda: not app.state.worker.running)


def test_refuses_a_key_that_comes_with_another_body() -> None:
    client = client_of(front(says("the mill")))
    client.post("/generate", json=BODY, headers=keyed())
    for path, body, status in (("/generate", STREAM, 422), ("/", BODY, 422), ("/v1/completions", {"prompt": "a"}, 400)):
        reply = client.post(path, json=body, headers=keyed())
        assert reply.status_code == status
        assert reply.json()["error"]["code"] == "idempotency_mismatch"
        assert reply.headers["x-should-retry"] == "false"


def test_keys_of_one_caller_mean_nothing_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_API_KEYS", "first-key-0123456789,second-key-0123456789")
    app = front(says("the mill"))
    for name in ("first", "second"):
        headers = keyed(Authorization=f"Bearer {name}-key-0123456789")
        reply = client_of(app).post("/generate", json=BODY, headers=headers)
        assert "idempotency-replayed" not in reply.headers
    assert len(app.state.worker.commands) == 2


@pytest.mark.parametrize(
    ("error", "num_tries"), [(SluiceError("It broke."), 2), (NumericalError("It is not finite."), 1)]
)
def test_an_error_is_kept_only_where_a_retry_is_of_no_use(error: SluiceError, num_tries: int) -> None:
    def fails(_: Generate) -> Iterator[Step]:
        yield error

    app = front(fails)
    for _ in range(2):
        assert client_of(app).post("/generate", json=BODY, headers=keyed()).status_code == 500
    assert len(app.state.worker.commands) == num_tries


def test_refused_requests_may_be_mended_under_the_same_key_only_with_the_same_body() -> None:
    client = client_of(front(says("the mill")))
    wrong = {"inputs": "a", "parameters": {"top_k": -5}}
    assert client.post("/generate", json=wrong, headers=keyed()).status_code == 422
    assert client.post("/generate", json=BODY, headers=keyed()).status_code == 200


def test_an_answer_is_forgotten_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    app = front(says("the mill"))
    client_of(app).post("/generate", json=BODY, headers=keyed())
    monkeypatch.setattr(idempotency, "KEPT_S", -1.0)
    client_of(app).post("/generate", json=BODY, headers=keyed())
    assert len(app.state.worker.commands) == 2


def test_the_table_is_bounded_in_entries_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    app = front(says("the mill"))
    monkeypatch.setattr(idempotency, "MAX_ENTRIES", 3)
    for i in range(6):
        assert client_of(app).post("/generate", json=BODY, headers=keyed(f"{i}")).status_code == 200
    for i, is_kept in ((5, True), (0, False)):
        reply = client_of(app).post("/generate", json=BODY, headers=keyed(f"{i}"))
        assert ("idempotency-replayed" in reply.headers) == is_kept
    monkeypatch.setattr(idempotency, "MAX_BYTES", 10)
    for i in range(3):
        assert client_of(app).post("/generate", json=BODY, headers=keyed(f"more {i}")).status_code == 200


def test_an_answer_that_is_too_long_reaches_its_client_and_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_work, "MAX_ANSWER_BYTES", 100)
    client = client_of(front(says("the mill runs past the mill")))
    first = client.post("/generate", json=STREAM, headers=keyed())
    numbers = [number for number, _ in events(first.text)]
    assert len(numbers) > 3 and numbers == list(range(1, len(numbers) + 1))
    again = client.post("/generate", json=STREAM, headers=keyed())
    assert again.json()["error"]["code"] == "idempotency_answer_not_kept"


@pytest.mark.parametrize("headers", [keyed(""), keyed("x" * 256), keyed(**{"Last-Event-ID": "x"})])
def test_refuses_headers_that_mean_nothing(headers: dict[str, str]) -> None:
    assert client_of(front(says("x"))).post("/generate", json=BODY, headers=headers).status_code == 422


def test_refuses_to_go_on_from_an_event_of_a_stream_that_is_gone() -> None:
    reply = client_of(front(says("x"))).post("/generate", json=STREAM, headers=keyed(**{"Last-Event-ID": "3"}))
    assert reply.status_code == 422


def test_what_the_application_raises_is_every_followers_failure() -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("boom")

    gate = Idempotency(broken, paths={"/generate"})

    async def main() -> None:
        scope = {
            "type": "http", "method": "POST", "path": "/generate", "query_string": b"", "state": {"record": None},
            "headers": [(b"idempotency-key", b"k")],
        }  # fmt: skip
        messages = [{"type": "http.request", "body": b"{}", "more_body": False}]

        async def receive() -> Any:
            return messages.pop() if messages else await asyncio.Event().wait()

        async def send(_: Any) -> None:
            raise AssertionError("nothing is answered")

        with pytest.raises(RuntimeError, match="boom"):
            await gate(scope, receive, send)

    asyncio.run(main())


def test_encoders_answers_are_kept_too() -> None:
    from tests.encoder_app import client_of as encoders_client
    from tests.encoder_app import tiny_worker

    worker = tiny_worker("mood", "bert", "classify", labels=("no", "yes"))
    client: TestClient = encoders_client(worker)
    first, again = [client.post("/classify", json={"inputs": "a mill"}, headers=keyed()) for _ in range(2)]
    assert first.content == again.content
    assert again.headers["idempotency-replayed"] == "true"
