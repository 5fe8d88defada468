"""Each route has one address and a few spellings of it, and every rule holds for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from server.api.http.addresses import VERSION, canonical_path
from tests.api.shell import client_of, listening, shell
from tests.api.test_access import OPEN, USER, bearer, routes
from tests.api.test_limits import talk

MAX_BODY_BYTES = 1000


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    keys = tmp_path / "keys"
    keys.write_text(USER + "\n")
    return shell(api_keys_file=str(keys), max_body_bytes=MAX_BODY_BYTES)


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return client_of(app)


def spellings(path: str) -> list[str]:
    found = [path + "/"] if path != "/" else []
    if path.startswith(VERSION) and canonical_path(path.removeprefix(VERSION)) == path:
        found.append(path.removeprefix(VERSION))
    return found


def found_routes(app: FastAPI, method: str) -> list[str]:
    return [path.replace("{", "").replace(":path}", "").replace("}", "") for m, path in routes(app) if m == method]


def test_every_get_route_answers_head_and_a_trailing_slash_alike(app: FastAPI, client: TestClient) -> None:
    paths = found_routes(app, "GET")
    assert len(paths) > 30
    for path in paths:
        answer = client.get(path, headers=bearer(USER))
        for method, spelling in [("HEAD", path), *(("GET", each) for each in spellings(path))]:
            other = client.request(method, spelling, headers=bearer(USER))
            assert other.status_code == answer.status_code, (method, spelling)
            assert other.headers["content-type"] == answer.headers["content-type"], (method, spelling)


def test_every_versioned_route_answers_without_its_version(app: FastAPI) -> None:
    """`/classify`, `/rerank` and `/score` are routes of their own, which take the versioned bodies too."""
    own = {path for method in ("GET", "POST") for path in found_routes(app, method)}
    for path in own:
        if path.startswith(VERSION + "/"):
            assert path.removeprefix(VERSION) in own or canonical_path(path.removeprefix(VERSION)) == path


def test_no_spelling_of_a_route_avoids_its_key_or_its_limits(app: FastAPI, client: TestClient) -> None:
    large = b'"' + b"x" * MAX_BODY_BYTES + b'"'
    for method, path in [(m, p) for m in ("GET", "POST") for p in found_routes(app, m)]:
        is_open = method == "GET" and (path in OPEN or path.startswith("/page/"))
        for spelling in spellings(path):
            refused = client.request(method, spelling).status_code == 401
            assert refused != is_open, (method, spelling)
            if method == "POST":
                headers = {**bearer(USER), "content-type": "application/json"}
                answer = client.post(spelling, content=large, headers=headers)
                assert answer.status_code == 413, spelling


def test_an_unversioned_path_is_logged_and_refused_as_its_versioned_one(client: TestClient) -> None:
    headers = bearer(USER)
    for path in ("/v1/chat/completions", "/chat/completions"):
        answer = client.post(path, json={}, headers=headers)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages", path


def test_two_trailing_slashes_are_no_spelling(client: TestClient) -> None:
    assert client.get("/info//", headers=bearer(USER)).status_code == 404


def test_head_has_the_length_of_get_and_no_body(app: FastAPI) -> None:
    with listening(app) as port:
        head = talk(port, b"HEAD /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        get = talk(port, b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    body = get.partition(b"\r\n\r\n")[2]
    assert body and head.endswith(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head.lower()
