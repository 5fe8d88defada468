"""What a request may look like on the wire; anything else is refused in the one shape, and the connection ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import Request

from server.api.http import protocol as http_protocol
from tests.api.raw import connected, parsed, read_all, talk
from tests.api.shell import listening, shell

POST = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n"
CLOSE = b"Connection: close\r\n\r\n"
READS_NOTHING = [GET, b"POST /nothing HTTP/1.1\r\nHost: a\r\n", b"DELETE /info HTTP/1.1\r\nHost: a\r\n"]
"""Requests of routes that want no body."""


@pytest.fixture(scope="module")
def app() -> Any:
    return shell(max_body_bytes=100_000)


@pytest.fixture(scope="module")
def port(app: Any) -> Iterator[int]:
    with listening(app) as port:
        yield port


def refuses(port: int, request: bytes, status: int, code: str) -> None:
    answer = talk(port, request)
    assert (answer.status, answer.error["code"]) == (status, code), request[:200]
    assert set(answer.error) == {"message", "type", "param", "code", "request_id"}
    assert answer.error["request_id"] in answer.head
    assert answer.connection == ["close"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a/b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n Host: a\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nX: b\r\n\tc\r\n\r\n",
        b"GET /livez HTTP/1.1\nHost: a\n\n",
        b"GET /livez HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
        b"GET  /livez HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /livez\r\n\r\n",
        b"GET /livez HTTP/2.0\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"NONE /livez HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
        POST + b"Content-Length: 2, 2\r\n\r\n{}",
        POST + b"Content-Length: +2\r\n\r\n{}",
        POST + b"Content-Length: -2\r\n\r\n{}",
        POST + b"Content-Length: 0x2\r\n\r\n{}",
        POST + b"Content-Length: 99999999999999999999\r\n\r\n{}",
        POST + b"Content-Length: 2\r\n" + CHUNKED + b"2\r\n{}\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n" + CHUNKED + b"0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        b"POST /generate HTTP/1.0\r\nContent-Type: application/json\r\n" + CHUNKED + b"0\r\n\r\n",
    ],
    ids=lambda request: repr(request[-60:]),
)
def test_refuses_a_head_that_two_readers_could_understand_differently(port, request_bytes):
    refuses(port, request_bytes, 400, "malformed_request")


@pytest.mark.parametrize("start", [POST, *READS_NOTHING], ids=["work", "probe", "no route", "no method"])
@pytest.mark.parametrize(
    "body",
    [
        b"FFFFFFFFFFFFFFFFFF\r\n",
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b"0x2\r\n{}\r\n0\r\n\r\n",
        b"2 \r\n{}\r\n0\r\n\r\n",
        b"\r\n{}\r\n0\r\n\r\n",
        b"2\n{}\r\n0\r\n\r\n",
        b"2\r\n{}\n0\r\n\r\n",
        b"2\r\n{}x\r\n0\r\n\r\n",
        b"2;a\rb\r\n{}\r\n0\r\n\r\n",
        b"2;" + b"a" * 2000 + b"\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}\r\n0\r\nnonsense\r\n\r\n",
        b"2\r\n{}\r\n0\r\n X: folded\r\n\r\n",
        b"2\r\n{}\r\n0\r\nX: " + b"a" * 20_000,
        b"2\r\n{}\r\n0\r\n" + b"X: a\r\n" * 3_000,
        b"1;" + b"a" * 900 + b"\r\n{\r\n" + (b"1;" + b"a" * 900 + b"\r\n \r\n") * 100,
    ],
    ids=lambda body: repr(body[:24]) + str(len(body)),
)
def test_refuses_broken_chunks_and_large_trailers_on_every_route(port, start, body):
    refuses(port, start + CHUNKED + body, 400, "malformed_request")


def test_takes_chunks_with_extensions_and_trailers(port):
    body = b'3;a=b;c="d"\r\n{"i\r\nA ;x\r\nnputs":"a"\r\n1\r\n}\r\n000\r\nX-Sum: 1\r\nHost: b\r\n\r\n'
    answer = talk(port, POST + b"Connection: close\r\n" + CHUNKED + body)
    assert answer.error["code"] == "starting"


def test_a_trailer_adds_no_header(app, port):
    seen = []

    async def headers(request: Request) -> dict[str, str]:
        await request.body()
        seen.append(dict(request.headers))
        return {}

    app.add_api_route("/headers", headers, methods=["PUT"])
    trailer = b"0\r\nAuthorization: Bearer x\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
    assert talk(port, b"PUT /headers HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + CHUNKED + trailer).status == 200
    assert seen == [{"host": "a", "connection": "close", "transfer-encoding": "chunked"}]


@pytest.mark.parametrize("size", [33_000, 60_000, 120_000])
def test_refuses_a_large_head_that_arrives_together_with_its_end(port, size):
    refuses(port, GET + b"X: " + b"a" * size + b"\r\n\r\n", 431, "headers_too_large")
    refuses(port, GET + b"X: " + b"a" * size + b"\r\n" + CLOSE + GET + CLOSE, 431, "headers_too_large")
    spaces = GET + b"X: " + b" " * size + b"\r\n\r\n"
    refuses(port, spaces, 431, "headers_too_large")


def test_counts_no_byte_of_a_body_as_one_of_the_next_head(port):
    body = b'{"inputs": "' + b"a" * 60_000 + b'"}'
    first = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with connected(port) as connection:
        connection.sendall(first + GET + b"X: " + b"a" * 31_000 + b"\r\n" + CLOSE)
        answers = read_all(connection).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"503", b"200"]


@pytest.mark.parametrize("start", READS_NOTHING, ids=["probe", "no route", "no method"])
@pytest.mark.parametrize(
    "body",
    [b"Content-Length: 100\r\n\r\nab", CHUNKED + b"a\r\nab", CHUNKED + b"0\r\nX: "],
    ids=["sized", "chunked", "trailer"],
)
def test_a_body_that_no_route_reads_has_a_deadline(port, start, body, monkeypatch):
    monkeypatch.setattr(http_protocol, "BODY_BASE_S", 0.3)
    monkeypatch.setattr(http_protocol, "BODY_BYTES_PER_S", 10_000_000)
    refuses(port, start + body, 408, "request_timeout")


@pytest.mark.parametrize("start", READS_NOTHING, ids=["probe", "no route", "no method"])
def test_a_body_that_no_route_reads_has_a_limit(port, start):
    refuses(port, start + b"Content-Length: 1000000000\r\n\r\n", 413, "body_too_large")
    chunks = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    refuses(port, start + CHUNKED + chunks * 7, 413, "body_too_large")


def test_a_dripped_body_does_not_move_its_deadline(port, monkeypatch):
    monkeypatch.setattr(http_protocol, "BODY_BASE_S", 0.5)
    monkeypatch.setattr(http_protocol, "BODY_BYTES_PER_S", 10_000_000)
    with connected(port) as connection:
        connection.sendall(GET + b"Content-Length: 90000\r\n\r\n")
        connection.settimeout(0.02)
        answer = b""
        deadline = time.monotonic() + 60
        while not answer and time.monotonic() < deadline:
            connection.sendall(b"a")
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                continue
    assert parsed(answer).error["code"] == "request_timeout"


def test_line_ends_before_a_request_do_not_move_the_deadline_of_its_head(port, monkeypatch):
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.5)
    with connected(port) as connection:
        connection.settimeout(0.05)
        deadline = time.monotonic() + 60
        answer = b""
        while not answer and time.monotonic() < deadline:
            connection.sendall(b"\r\n")
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                continue
    assert parsed(answer).status in (400, 408)


def test_what_follows_an_unread_body_that_never_ends_is_not_waited_for_long(app, port, monkeypatch):
    """A refusal that comes before the body, as for a missing key, leaves the body unread."""
    monkeypatch.setattr(http_protocol, "LINGER_S", 0.3)

    async def early(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    monkeypatch.setattr(app, "middleware_stack", early)
    answer = talk(port, GET + b"Content-Length: 100\r\n\r\nab")
    assert answer.status == 200 and answer.connection == []


def test_the_connection_goes_on_after_a_body_that_no_route_reads(port):
    with connected(port) as connection:
        connection.sendall(GET + b"Content-Length: 5\r\n\r\nGET /" + GET + CLOSE)
        assert [part[:3] for part in read_all(connection).split(b"HTTP/1.1 ")[1:]] == [b"200", b"200"]


def test_pipelined_requests_wait_for_the_answer_before_them(app, port):
    order: list[str] = []

    async def slow(request: Request) -> dict[str, str]:
        order.append("begins")
        await asyncio.sleep(0.1)
        order.append("ends")
        return {}

    app.add_api_route("/slow", slow)
    request = b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"
    with connected(port) as connection:
        connection.sendall(request * 3 + b"nonsense\r\n\r\n")
        answers = [part[:3] for part in read_all(connection).split(b"HTTP/1.1 ")[1:]]
    assert answers == [b"200", b"200", b"200", b"400"]
    assert order == ["begins", "ends"] * 3


def test_continue_is_said_where_the_body_is_wanted_and_nowhere_else(port):
    expects = POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    with connected(port) as connection:
        connection.sendall(expects)
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"{}")
        assert b"HTTP/1.1 4" in connection.recv(65536)
    too_long = POST + b"Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n"
    answer = talk(port, too_long)
    assert answer.status == 413 and answer.connection == ["close"]
    with connected(port) as connection:
        connection.sendall(GET + b"Expect: 100-continue\r\n" + CLOSE)
        assert read_all(connection).startswith(b"HTTP/1.1 200")


def test_a_request_to_switch_protocols_is_answered_as_a_plain_one(port):
    upgrade = GET + b"Upgrade: websocket\r\nConnection: upgrade, close\r\n\r\n"
    assert talk(port, upgrade).status == 200
    body = b'{"inputs": "a"}'
    h2c = b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: %d\r\n\r\n" % len(body)
    with connected(port) as connection:
        connection.sendall(POST + h2c + body + GET + CLOSE)
        assert [part[:3] for part in read_all(connection).split(b"HTTP/1.1 ")[1:]] == [b"503", b"200"]
