"""What a body and a request's head may be; beyond it a refusal of the one shape, and the connection's end."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from server.api.bodies.schemas import GenerateRequest
from server.api.dialects.hf.schemas import NerRequest
from server.api.http import protocol as http_protocol
from server.api.http.errors import InvalidJson
from server.api.http.json_body import strict_json
from tests.api.shell import client_of, listening, shell
from tests.api.test_errors import error_of

MAX_BODY = 100_000


@pytest.fixture(scope="module")
def client() -> TestClient:
    return client_of(shell(max_body_bytes=MAX_BODY))


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with listening(shell(max_body_bytes=MAX_BODY)) as port:
        yield port


def talk(port: int, *parts: bytes) -> bytes:
    """Send raw bytes; everything that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        for part in parts:
            connection.sendall(part)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


def parsed(answer: bytes) -> tuple[int, bytes, dict[str, str]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.lower(), json.loads(body)["error"]


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"inputs": "a"} x',
        b'{"inputs": "a"}{}',
        b"\xef\xbb\xbf{}",
        b'{"inputs": "\xff"}',
        '{"inputs": "a"}'.encode("utf-16"),
        b'{"inputs": "a\x00"}',
        b'{"inputs": "a"}\x00',
        b'{"inputs": "a", "parameters": {"top_p": NaN}}',
        b'{"inputs": "a", "parameters": {"top_p": Infinity}}',
        b'{"inputs": "a", "parameters": {"top_p": -Infinity}}',
        b'{"inputs": "a", "parameters": {"top_p": 1e999}}',
        b'{"inputs": "a", "parameters": {"top_k": 12345678901234567890}}',
        b'{"messages": [], "chat_template_kwargs": {"a": -9223372036854775809}}',
        b'{"inputs": "a", "inputs": "b"}',
        b'{"inputs": "a", "parameters": {"top_k": 1, "top_k": 2}}',
        b'{"inputs": "\\ud800"}',
        b'{"inputs": "a", "\\udc00": 1}',
        b"[" * 33 + b"]" * 33,
        b"[" * 40_000 + b"]" * 40_000,
        b'{"a":' * 9_000 + b"1" + b"}" * 9_000,
        b"{'inputs': 'a'}",
        b'{"inputs": "a",}',
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_body_that_is_not_strict_json_is_a_400(client, body):
    error_of(client.post("/generate", content=body, headers=JSON), 400, "invalid_json")


def test_sound_json_at_the_limits_passes():
    strict_json(b"[" * 32 + b"]" * 32)
    strict_json(b'{"a": [' + b"[]," * 100 + b"-9223372036854775808]}")
    strict_json('{"a": "\\ud83d\\ude00 \u4e2d \\\\ud800 {{{{"}'.encode())
    strict_json(json.dumps({"inputs": "[" * 1000}).encode())


def test_an_object_of_too_many_keys_is_refused_before_a_schema_looks_at_each(client):
    body = {"inputs": "a", **dict.fromkeys(map(str, range(1024)))}
    message = error_of(client.post("/generate", json=body), 400, "invalid_json")["message"]
    assert "1024 keys" in message
    error_of(client.post("/generate", json={"inputs": "a", "parameters": body}), 400, "invalid_json")


@pytest.mark.parametrize(
    ("schema", "parameters"),
    [(GenerateRequest, {"stop_token_ids": [True] * 100}), (NerRequest, {"ignore_labels": [1] * 100})],
)
def test_a_list_of_wrong_entries_is_one_error(schema, parameters):
    with pytest.raises(ValidationError) as refused:
        schema.model_validate({"inputs": "a", "parameters": parameters})
    assert refused.value.error_count() == 1


def test_one_level_more_is_too_deep_whatever_it_is_made_of():
    with pytest.raises(InvalidJson, match="deeper than 32"):
        strict_json(b'{"a": ' + b"[" * 32 + b"]" * 32 + b"}")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Content-Type": "text/plain"}, "unsupported_media_type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "unsupported_media_type"),
        ({"Content-Type": "application/json; charset=latin-1"}, "unsupported_media_type"),
        ({}, "unsupported_media_type"),
        ({**JSON, "Content-Encoding": "gzip"}, "unsupported_encoding"),
    ],
)
def test_a_body_of_another_kind_is_a_415(client, headers, code):
    response = client.post("/generate", content=b'{"inputs": "a"}', headers=headers)
    error_of(response, 415, code)
    assert (response.headers.get("accept-encoding") == "identity") == (code == "unsupported_encoding")


def test_a_declared_charset_of_utf8_is_taken(client):
    headers = {"Content-Type": 'application/json; charset="UTF-8"'}
    error_of(client.post("/generate", content=b'{"inputs": "a"}', headers=headers), 503, "starting")


def test_a_body_up_to_the_limit_is_taken_and_one_byte_more_is_not(client):
    body = json.dumps({"inputs": "a" * (MAX_BODY - 14)}).encode()
    assert len(body) == MAX_BODY
    error_of(client.post("/generate", content=body, headers=JSON), 503, "starting")
    error_of(client.post("/generate", content=body + b" ", headers=JSON), 413, "body_too_large")


def test_a_declared_length_beyond_the_limit_is_refused_before_the_body_comes(port):
    head = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_a_client_that_sends_too_much_still_reads_why(port):
    head = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 4000000\r\n\r\n"
    status, lines, error = parsed(talk(port, head, b"x" * 4_000_000))
    assert (status, error["code"]) == (413, "body_too_large")
    assert b"connection: close" in lines


def test_a_chunked_body_is_cut_at_the_limit(port):
    head = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"2000\r\n" + b"x" * 0x2000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head + chunk * 14)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"NONSENSE\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nBad Header: b\r\n\r\n", 400, "malformed_request"),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "malformed_request",
        ),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "uri_too_long"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 40_000, 431, "headers_too_large"),
    ],
    ids=["nonsense", "space in name", "two lengths", "long address", "many headers", "endless header"],
)
def test_what_the_http_layer_refuses_has_the_one_shape(port, request_bytes, status, code):
    found, head, error = parsed(talk(port, request_bytes))
    assert (found, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert b"connection: close" in head
    assert error["request_id"].encode() in head


def test_a_head_that_does_not_come_in_time_is_a_408(port, monkeypatch):
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)
    found, _, error = parsed(talk(port, b"GET /livez HTTP/1.1\r\nHost:"))
    assert (found, error["code"]) == (408, "request_timeout")


def test_a_body_that_does_not_come_in_time_is_a_408(port, monkeypatch):
    monkeypatch.setattr(http_protocol, "BODY_BASE_S", 0.2)
    monkeypatch.setattr(http_protocol, "BODY_BYTES_PER_S", 1_000_000)
    head = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n"
    found, lines, error = parsed(talk(port, head, b'{"inputs"'))
    assert (found, error["code"]) == (408, "request_timeout")
    assert b"connection: close" in lines


def test_a_client_that_leaves_while_it_sends_is_no_error_of_ours(port, caplog):
    head = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n"
    with caplog.at_level(logging.INFO):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(head + b'{"inputs"')
            time.sleep(0.1)
        deadline = time.monotonic() + 10
        while not (lines := [r for r in caplog.records if r.message == "request finished"]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert lines[0].fields["status"] == 499
    assert lines[0].fields["client_gone"] is True
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_requests_that_share_a_connection_are_answered_in_turn(port):
    one = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
    last = b"GET /startupz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answer = talk(port, one + one + last)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"503"]
