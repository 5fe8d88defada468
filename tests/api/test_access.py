"""With keys, nothing but probes and the page answers without one; a key never shows, and guessing is slow."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Route
from starlette.testclient import TestClient

from server.api.http import access, keys
from server.errors import ConfigurationError
from tests.api.shell import client_of, listening, shell

USER, HASHED, WATCHER, ADMIN = ("key-of-" + name + "-0123456789" for name in ("user", "hashed", "watcher", "admin"))
OPEN = {"/", "/page/{version}/{name}", "/livez", "/readyz", "/startupz", "/health"}
ODD_PATHS = (
    "//v1/models", "/v1//models", "/V1/models", "/v1%2Fmodels", "/%761/models", "/v1/models/", "/livez/../v1/models",
    "/livez/..%2Finfo", "/livez%2f..%2finfo", "/livez;/info", "/livez%00/info", "/page/../info", "/page/..%2f..%2finfo",
    "/page/x/../../info", "/./info", "/info/", "/info?", "/info#", "/%69nfo", "/healthz", "/health//", "/HEALTH",
    "http://127.0.0.1/info", "http://livez/info", "https://x/livez/../info", "*", "/metrics/", "/METRICS", "/docs/",
)  # fmt: skip


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "keys"
    lines = ("# ours", USER, f"sha256:{keys.digest_of(HASHED).hex()} use", "", f"{WATCHER} metrics", f"{ADMIN} admin")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def app(key_file: str) -> FastAPI:
    return shell(api_keys_file=key_file)


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return client_of(app)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def routes(router: Any) -> Iterator[tuple[str, str]]:
    """Method and path of every route, those of included routers too."""
    for route in router.routes:
        if (included := getattr(route, "original_router", None)) is not None:
            yield from routes(included)
            continue
        assert isinstance(route, APIRoute | Route), f"{route} must be thought of here"
        for method in route.methods or ():
            yield method, route.path


def test_every_route_but_probes_and_the_page_wants_a_key(app, client):
    seen = set()
    found = list(routes(app))
    assert len(found) > 30
    for method, path in found:
        shown = path.replace("{", "").replace("}", "")
        answer = client.request(method, shown)
        if path in OPEN and method != "POST":
            assert answer.status_code != 401, (method, path)
            seen.add(path)
        else:
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                error = answer.json()["error"]
                # LibreTranslate's routes answer with a sentence alone.
                assert "API key" in error if isinstance(error, str) else error["code"] == "invalid_api_key"
    assert seen == OPEN


@pytest.mark.parametrize("path", ["/nothing", "/v1/nothing", "/v1"])
def test_what_is_no_route_wants_a_key_too(client, path):
    assert client.get(path).status_code == 401
    assert client.get(path, headers=bearer(USER)).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        bearer(USER),
        bearer(HASHED),
        {"x-api-key": USER},
        {"authorization": f"bEaReR {USER}"},
        {**bearer(USER), "x-api-key": USER},
    ],
)
def test_a_key_opens_in_the_forms_in_which_clients_send_it(client, headers):
    assert client.get("/info", headers=headers).status_code == 200
    assert client.post("/generate", headers=headers, json={"inputs": "a"}).status_code == 503


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(USER + "x"),
        bearer(USER[:-1]),
        bearer(USER.upper()),
        bearer(""),
        {"Authorization": USER},
        {"Authorization": f"Basic {USER}"},
        {"Authorization": f"Bearer {USER} {USER}"},
        {**bearer(USER), "x-api-key": HASHED},
        bearer("sha256:" + keys.digest_of(USER).hex()),
        bearer(keys.digest_of(USER).hex()),
        {"Cookie": f"key={USER}"},
    ],
)
def test_nothing_else_opens(client, headers):
    assert client.get("/info", headers=headers).status_code == 401
    assert client.get("/info", params={"api_key": USER}, headers=headers).status_code == 401


def test_a_scope_allows_its_own_and_admin_allows_all(client):
    allowed = {
        (name, path): client.get(path, headers=bearer(key)).status_code
        for name, key in (("user", USER), ("watcher", WATCHER), ("admin", ADMIN))
        for path in ("/info", "/metrics")
    }
    assert allowed == {
        ("user", "/info"): 200, ("user", "/metrics"): 403, ("watcher", "/info"): 403, ("watcher", "/metrics"): 200,
        ("admin", "/info"): 200, ("admin", "/metrics"): 200,
    }  # fmt: skip
    refusal = client.get("/metrics", headers=bearer(USER)).json()["error"]
    assert refusal["code"] == "scope_missing" and "metrics" in refusal["message"]


def test_no_odd_path_gets_past(app):
    with listening(app) as port:
        for path in ODD_PATHS:
            for head in (
                "Host: x",
                "Host: livez",
                "Host: x\r\nX-Original-URL: /livez",
                "Host: x\r\nX-Forwarded-Uri: /livez",
            ):
                status = _status(port, f"GET {path} HTTP/1.1\r\n{head}\r\nConnection: close\r\n\r\n")
                assert status in (400, 401, 404), (path, head, status)
                # Below /page/ there are files of the page and nothing else.
                assert status != 404 or path.startswith("/page/") or "health" in path.lower(), (path, head, status)


def test_a_body_of_nobody_is_not_read(app):
    """The answer comes while the body is still on its way, and says nothing of the body's mistakes."""
    with listening(app) as port, socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        head = (
            "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2000000\r\n\r\n{{{"
        )
        connection.sendall(head.encode())
        assert b" 401 " in connection.recv(65536).partition(b"\r\n")[0]


def test_whoever_guesses_waits_and_others_behind_the_address_do_not(app, monkeypatch):
    client = client_of(app)
    assert client.get("/info", headers=bearer(USER)).status_code == 200
    statuses = [client.get("/info", headers=bearer(f"guess-number-{n:08}")).status_code for n in range(30)]
    assert statuses == [401] * access.MAX_FAILURES + [429] * (30 - access.MAX_FAILURES)
    # Even a right guess is not looked at; the wait is told.
    refused = client.get("/info", headers=bearer(HASHED))
    assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= access.FAILURES_S
    assert client.get("/info", headers=bearer(USER)).status_code == 200
    assert client.get("/info").status_code == 401
    clock = access.time.monotonic() + access.FAILURES_S + 1
    monkeypatch.setattr(access.time, "monotonic", lambda: clock)
    assert client.get("/info", headers=bearer(HASHED)).status_code == 200


def test_addresses_that_guessed_take_bounded_memory(monkeypatch):
    monkeypatch.setattr(access, "MAX_ADDRESSES", 8)
    failures = access._Failures()
    for n in range(100):
        failures.note_wrong(str(n))
        failures.note_right(str(n), b"")
    assert len(failures._addresses) == len(failures._right) == 8


def test_a_key_is_in_no_log_and_no_answer(client, caplog):
    caplog.set_level(logging.DEBUG)
    wrong = "wrong-key-0123456789"
    answers = [client.get("/info", headers=bearer(key)).text for key in (USER, wrong, HASHED)]
    client.post("/generate", headers=bearer(USER), json={"inputs": "a"})
    told = "".join(answers) + "".join(f"{record.getMessage()}{record.__dict__}" for record in caplog.records)
    assert USER not in told and wrong not in told and HASHED not in told
    assert keys.digest_of(USER).hex()[:8] in told, "the log tells which key it was"
    assert keys.digest_of(USER).hex() not in told


def test_without_keys_everything_is_open(monkeypatch):
    monkeypatch.delenv(keys.VARIABLE, raising=False)
    client = client_of(shell())
    assert client.get("/info").status_code == 200
    assert client.get("/info", headers=bearer("anything-at-all-here")).status_code == 200


def test_keys_come_from_the_environment_too(monkeypatch):
    monkeypatch.setenv(keys.VARIABLE, f"{USER}, sha256:{keys.digest_of(HASHED).hex()} metrics,admin ,{WATCHER} metrics")
    # A comma ends an entry: scopes of one key are between spaces there.
    with pytest.raises(ConfigurationError):
        shell()
    monkeypatch.setenv(keys.VARIABLE, f"{USER}, sha256:{keys.digest_of(HASHED).hex()} metrics use ,{WATCHER} metrics")
    client = client_of(shell())
    assert client.get("/info", headers=bearer(USER)).status_code == 200
    assert client.get("/metrics", headers=bearer(HASHED)).status_code == 200
    assert client.get("/info", headers=bearer(HASHED)).status_code == 200
    assert client.get("/info", headers=bearer(WATCHER)).status_code == 403


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("short", "at least 16"),
        ("ключ-из-многих-букв-0123", "ASCII"),
        ("sha256:123", "64 digits"),
        (f"{USER} root", "scopes use, metrics, admin"),
        ("# nothing", "no key"),
        ("", "no key"),
    ],
)
def test_a_file_of_keys_that_cannot_be_meant_is_refused_without_showing_them(tmp_path, content, problem):
    path = tmp_path / "keys"
    path.write_text(content + "\n")
    with pytest.raises(ConfigurationError, match=problem) as found:
        keys.load(str(path), {})
    assert not content or content.split()[0] not in str(found.value) or content.startswith("#")


@pytest.mark.parametrize("said", [" ", ",", "\n"])
def test_a_variable_without_a_key_does_not_open_the_server(said):
    with pytest.raises(ConfigurationError, match="SLUICE_API_KEYS has no key"):
        keys.load(None, {keys.VARIABLE: said})
    assert not keys.load(None, {keys.VARIABLE: ""})


def test_a_missing_file_of_keys_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        keys.load(str(tmp_path / "none"), {})


ORIGIN = {"Origin": "https://chat.example"}
ASKS = {**ORIGIN, "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os"}  # fmt: skip


def test_other_sites_are_closed_out_by_default(client):
    assert client.options("/generate", headers=ASKS).status_code in (401, 405)
    answer = client.get("/livez", headers=ORIGIN)
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_an_allowed_origin_may_ask_with_any_header_and_read_what_clients_read(key_file):
    client = client_of(shell(api_keys_file=key_file, cors_origins="https://chat.example, https://other.example"))
    asked = client.options("/generate", headers=ASKS)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == "https://chat.example"
    assert "x-stainless-os" in asked.headers["access-control-allow-headers"].lower()
    refused = client.post("/generate", headers=ORIGIN, content=b"{}")
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://chat.example"
    exposed = refused.headers["access-control-expose-headers"].lower()
    assert "x-request-id" in exposed and "retry-after" in exposed
    assert "access-control-allow-credentials" not in refused.headers
    stranger = client.options("/generate", headers={**ASKS, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in stranger.headers


def _status(port: int, request: str) -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request.encode())
        answer = b""
        while b"\r\n" not in answer and (chunk := connection.recv(65536)):
            answer += chunk
    assert b'"models"' not in answer, json.dumps(answer.decode(errors="replace"))
    return int(answer.split()[1])
