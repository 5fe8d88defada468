"""LibreTranslate's clients send their API key in the body. Other routes do not look there."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.api.http import access, keys
from server.api.http.body_key import MAX_KEY_BODY_BYTES
from server.api.http.form_body import FORM_TYPE
from tests.api.shell import listening
from tests.api.translators import MANY, client_of, translator

USER, OTHER, WATCHER = ("key-of-" + name + "-0123456789" for name in ("user", "other", "watcher"))
WRONG = "wrong-key-0123456789"
ASKED = {"q": "a", "source": "en", "target": "de"}


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    path = tmp_path / "keys"
    path.write_text(f"{USER}\n{OTHER}\n{WATCHER} metrics\n")
    return client_of(translator("many", MANY), api_keys_file=str(path))


@pytest.mark.parametrize("kind", ["json", "data"])
def test_the_key_of_a_body_opens(client: TestClient, kind: str):
    options: dict[str, Any] = {kind: {**ASKED, "api_key": USER}}
    response = client.post("/translate", **options)
    assert response.status_code == 200, response.text
    assert response.json() == {"translatedText": "A"}


@pytest.mark.parametrize("kind", ["json", "data"])
@pytest.mark.parametrize("key", [None, "", WRONG, USER[:-1], keys.digest_of(USER).hex()])
def test_no_other_key_opens(client: TestClient, kind: str, key: str | None):
    options: dict[str, Any] = {kind: ASKED if key is None else {**ASKED, "api_key": key}}
    response = client.post("/translate", **options)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert "API key" in response.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b'{"api_key": 5}', b'{"q": "a", "api_key": ["x"]}'])
def test_a_body_without_a_key_is_refused_for_that_alone(client: TestClient, body: bytes):
    response = client.post("/translate", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 401


@pytest.mark.parametrize("header", ["Authorization", "x-api-key"])
def test_a_header_comes_before_the_body(client: TestClient, header: str):
    def status(in_header: str, in_body: str) -> int:
        sent = f"Bearer {in_header}" if header == "Authorization" else in_header
        return client.post("/translate", json={**ASKED, "api_key": in_body}, headers={header: sent}).status_code

    assert status(USER, WRONG) == status(USER, OTHER) == 200
    assert status(WRONG, USER) == status("", USER) == 401


def test_a_key_of_a_body_needs_the_scope(client: TestClient):
    response = client.post("/translate", json={**ASKED, "api_key": WATCHER})
    assert response.status_code == 403
    assert "scope" in response.json()["error"]


def test_wrong_keys_in_bodies_count_as_those_in_headers(client: TestClient):
    statuses = [
        client.post("/translate", data={**ASKED, "api_key": f"guess-number-{n:08}"}).status_code
        for n in range(access.MAX_FAILURES + 1)
    ]
    assert statuses == [401] * access.MAX_FAILURES + [429]
    assert client.get("/info", headers={"x-api-key": USER}).status_code == 429


def test_other_routes_do_not_look_into_bodies(client: TestClient):
    for path in ("/summarize", "/generate", "/v1/chat/completions"):
        assert client.post(path, json={"inputs": "a", "api_key": USER}).status_code == 401
    assert client.request("GET", "/info", json={"api_key": USER}).status_code == 401


def test_the_languages_are_listed_for_a_key_in_the_body(client: TestClient):
    """As libretranslatepy sends it."""
    assert client.get("/languages").status_code == 401
    for options in ({"data": {"api_key": USER}}, {"json": {"api_key": USER}}):
        assert len(client.request("GET", "/languages", **options).json()) == 3
    refused = client.request("GET", "/languages", data={"api_key": WRONG})
    assert refused.status_code == 401
    assert "API key" in refused.json()["error"]


@pytest.mark.parametrize(("key", "status"), [(USER, 404), (WRONG, 401)])
@pytest.mark.parametrize("kind", ["json", "data"])
def test_a_path_that_is_missing_is_told_to_those_with_a_key(client: TestClient, kind: str, key: str, status: int):
    options: dict[str, Any] = {kind: {"q": "a", "api_key": key}}
    response = client.post("/detect", **options)
    assert response.status_code == status
    assert isinstance(response.json()["error"], str)


def test_a_long_body_needs_its_key_in_a_header(client: TestClient):
    body = {**ASKED, "q": "a" * MAX_KEY_BODY_BYTES, "api_key": USER}
    assert client.post("/translate", json=body).status_code == 401
    assert client.post("/translate", json=body, headers={"x-api-key": USER}).status_code == 400, "the text is too long"


@pytest.mark.parametrize("length", [f"Content-Length: {MAX_KEY_BODY_BYTES + 1}", "Transfer-Encoding: chunked"])
def test_no_more_than_a_short_body_of_nobody_is_read(client: TestClient, length: str):
    """The answer comes while the rest is still on its way."""
    head = f"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM_TYPE}\r\n{length}\r\n\r\n"
    start = MAX_KEY_BODY_BYTES + 1
    body = f"{start:x}\r\n".encode() + b"a" * start + b"\r\n" if "chunked" in length else b"q=a"
    with listening(client.app) as port, socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head.encode() + body)
        assert b" 401 " in connection.recv(65536).partition(b"\r\n")[0]


def test_a_key_of_a_body_is_in_no_log_and_no_answer(client: TestClient, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    answers = [client.post("/translate", data={**ASKED, "api_key": key}).text for key in (USER, WRONG)]
    told = "".join(answers) + "".join(f"{record.getMessage()}{record.__dict__}" for record in caplog.records)
    assert USER not in told and WRONG not in told
    assert keys.digest_of(USER).hex()[:8] in told, "the log tells which key it was"


def test_a_server_without_keys_ignores_the_field():
    client = client_of(translator("many", MANY))
    assert client.post("/translate", json={**ASKED, "api_key": "anything"}).status_code == 200
