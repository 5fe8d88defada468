"""Clients of HTTP/1.0, clients that end their side of the connection, and clients that leave."""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

import pytest

from tests.api.raw import Answer, connected, parsed, read_all
from tests.api.scripted import front, happens, says, silent, talks_for_ever
from tests.api.shell import listening, shell

TEXT = "The miller counts the sacks"
MESSAGES = [{"role": "user", "content": "Hello"}]


def request(version: str, path: str = "/generate", *headers: str, **body: Any) -> bytes:
    content = json.dumps(body).encode()
    lines = (f"POST {path} HTTP/{version}", "Host: a", "Content-Type: application/json", *headers)
    return "\r\n".join((*lines, f"Content-Length: {len(content)}", "", "")).encode() + content


def generate(version: str, *headers: str, stream: bool, **fields: Any) -> bytes:
    return request(version, "/generate", *headers, inputs="Hello", stream=stream, **fields)


def ask(port: int, data: bytes, *, half_close: bool = False) -> bytes:
    with connected(port, timeout=30) as connection:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return read_all(connection)


def text_of(answer: Answer) -> str:
    """The text of a stream of /generate."""
    assert answer.status == 200
    events = [json.loads(line.removeprefix("data: ")) for line in answer.body.decode().split("\n\n") if line]
    return str(events[-1]["generated_text"])


@pytest.mark.parametrize("headers", [(), ("Connection: keep-alive",)], ids=["plain", "keep-alive"])
def test_a_stream_for_http_1_0_has_no_chunks_and_ends_with_the_connection(headers):
    with listening(front(says(TEXT))) as port:
        answer = parsed(ask(port, generate("1.0", *headers, stream=True)))
    assert "transfer-encoding" not in answer.head and "content-length" not in answer.head
    assert answer.connection == ["close"]
    assert text_of(answer) == TEXT


def test_http_1_0_keeps_the_connection_only_when_asked():
    get = b"GET /livez HTTP/1.0\r\n"
    with listening(shell()) as port:
        assert parsed(ask(port, get + b"\r\n")).connection == ["close"]
        answers = ask(port, get + b"Connection: keep-alive\r\n\r\n" + get + b"\r\n").split(b"HTTP/1.1 ")[1:]
    assert [parsed(b"HTTP/1.1 " + answer).connection for answer in answers] == [["keep-alive"], ["close"]]


def test_an_answer_has_one_connection_header():
    with listening(front(says(TEXT))) as port:
        answer = parsed(ask(port, generate("1.1", "Connection: close", stream=True)))
    assert answer.connection == ["close"]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("pause_s", [0.0, 0.1], ids=["quick", "slow"])
def test_a_client_that_sends_no_more_gets_its_whole_answer(version, stream, pause_s):
    with listening(front(says(TEXT, pause_s=pause_s))) as port:
        data = ask(port, generate(version, "Connection: close", stream=stream), half_close=True)
    while data.startswith(b"HTTP/1.1 100 Continue\r\n\r\n"):
        assert version == "1.1"
        data = data.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    answer = parsed(data)
    if not stream:
        assert json.loads(answer.body)["generated_text"] == TEXT
    elif version == "1.0":
        assert text_of(answer) == TEXT
    else:
        assert answer.body.endswith(b"0\r\n\r\n") and f'"generated_text":"{TEXT}"'.encode() in answer.body


def test_a_client_that_sends_no_more_gets_the_answers_to_all_it_sent():
    get = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
    with listening(shell()) as port:
        assert ask(port, get * 3, half_close=True).count(b"HTTP/1.1 200") == 3


def test_a_client_that_sends_no_more_of_its_second_request_is_closed_after_the_first_answer():
    first = generate("1.1", stream=False)
    with listening(front(says(TEXT, pause_s=0.02))) as port:
        begin = time.monotonic()
        data = ask(port, first + first[:-5], half_close=True)
        assert data.count(b"HTTP/1.1 200") == 1
        assert time.monotonic() - begin < 20


@pytest.mark.parametrize("script", [talks_for_ever, silent], ids=["running", "queued"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_sends_no_more_and_leaves_later_is_cancelled(script, stream):
    app = front(script)
    with listening(app) as port, connected(port) as connection:
        connection.sendall(generate("1.1", stream=stream))
        connection.shutdown(socket.SHUT_WR)
        assert happens(lambda: bool(app.state.worker.running))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        assert happens(lambda: not app.state.worker.running)


@pytest.mark.parametrize("script", [talks_for_ever, silent], ids=["running", "queued"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_is_cancelled_within_two_seconds(script, stream):
    app = front(script)
    with listening(app) as port:
        with connected(port) as connection:
            connection.sendall(generate("1.1", stream=stream))
            assert happens(lambda: bool(app.state.worker.running))
        start_s = time.monotonic()
        assert happens(lambda: not app.state.worker.running)
        assert time.monotonic() - start_s < 2.0
