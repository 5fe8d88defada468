"""How streams of OpenAI's routes stay alive and break, over real sockets."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from server.api.http import sse
from server.errors import NoTokenLeft, NumericalError
from server.protocol import Tokens
from server.serving.generator import ServedGenerator
from tests.api.openai.fronts import COMPLETIONS, chunks_of, events_of
from tests.api.scripted import MILL, TOKENIZER, front, happens, one_token_then, says, talks_for_ever
from tests.api.shell import listening

BODY = {"prompt": "Hello", "stream": True}


@contextmanager
def streaming(app: FastAPI, path: str = COMPLETIONS, **body: Any) -> Iterator[httpx2.Response]:
    with (
        listening(app) as port,
        httpx2.stream("POST", f"http://127.0.0.1:{port}{path}", json={**BODY, **body}, timeout=20) as response,
    ):
        yield response


@pytest.mark.parametrize("error", [NumericalError("Not finite."), RuntimeError("a secret")])
def test_a_failure_after_the_first_token_is_one_error_object_and_the_end(error: Exception) -> None:
    """A data line without a name: OpenAI's clients raise for it. No end mark, for nothing came to its end."""
    app = front(one_token_then(error))
    with streaming(app, stream_options={"include_usage": True}) as response:
        assert response.status_code == 200
        events = events_of(response.read().decode())
    assert len(events) == 2
    body = json.loads(events[1])
    assert set(body) == {"error", "error_type"} and set(body["error"]) == {
        "message",
        "type",
        "param",
        "code",
        "request_id",
    }
    assert "secret" not in body["error"]["message"]
    assert not app.state.worker.running


def test_a_failure_of_one_prompt_ends_all_of_a_stream() -> None:
    def script(command):
        if command.prompt_ids[0] == MILL:
            yield 0.05
            yield NumericalError("Not finite.")
        yield from talks_for_ever(command)

    app = front(script)
    with streaming(app, prompt=[[MILL], [MILL + 1]]) as response:
        *events, last = events_of(response.read().decode())
    assert json.loads(last)["error"]["code"] == "numerical_error"
    assert all(json.loads(event)["choices"][0]["index"] == 1 for event in events)
    assert not app.state.worker.running and not app.front.registry.get(ServedGenerator, None).admission.num_requests


def test_a_failure_before_the_first_token_is_an_answer_of_its_own_status() -> None:
    def script(command):
        yield NoTokenLeft("No token is left.")

    with streaming(front(script), logit_bias={"5": False}) as response:
        assert response.status_code == 400
        error = json.loads(response.read())["error"]
    assert error["code"] == "no_token_left" and "logit_bias" in error["message"]


def test_a_sign_of_life_is_a_comment_a_chunk_or_nothing() -> None:
    def signs(**settings: Any) -> list[str]:
        with streaming(front(one_token_then(0.5), keep_alive_s=0.2, **settings)) as response:
            events = response.read().decode().removesuffix("\n\n").split("\n\n")
        assert events[-1] == "data: [DONE]"
        return events[1:-2]

    comments = signs()
    assert comments and set(comments) == {": keep-alive"}
    assert signs(keep_alive="off") == []
    chunks = signs(keep_alive="chunk")
    assert chunks
    for chunk in chunks:
        parsed = json.loads(chunk.removeprefix("data: "))
        assert parsed["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": None}]


def test_the_native_route_has_no_empty_chunk_and_keeps_to_comments() -> None:
    app = front(one_token_then(0.5), keep_alive_s=0.2, keep_alive="chunk")
    with listening(app) as port:
        url = f"http://127.0.0.1:{port}/generate"
        events = httpx2.post(url, json={"inputs": "Hello", "stream": True}).text.split("\n\n")
    assert set(events[1:-2]) == {": keep-alive"}


def test_a_reader_that_stops_is_cut_off_also_without_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sse.EventStream.__init__.__kwdefaults__, "send_timeout_s", 0.3)
    ids = TOKENIZER.encode(" the mill").ids * 40

    def floods(command):
        while True:
            yield Tokens(command.request_id, ids)
            yield 0.001

    app = front(floods, keep_alive="off")
    # The native route: its events are longer, and fill a connection sooner.
    content = json.dumps({"inputs": "Hello", "stream": True}).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    with listening(app) as port:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(head.encode() + b"\r\n\r\n" + content)
        assert happens(lambda: bool(app.state.worker.running))
        cut_off = happens(lambda: not app.state.worker.running)
        connection.close()
    assert cut_off


@pytest.mark.parametrize("prompt", ["Hello", ["Hello", "river"]])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_blocks(prompt: Any, stream: bool) -> None:
    app = front(talks_for_ever)
    num_prompts = 1 if isinstance(prompt, str) else len(prompt)
    content = json.dumps({"prompt": prompt, "stream": stream}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    with listening(app) as port:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(head.encode() + b"\r\n\r\n" + content)
        assert happens(lambda: len(app.state.worker.running) == num_prompts)
        connection.close()
        assert happens(lambda: not app.state.worker.running)
        assert happens(lambda: app.front.registry.get(ServedGenerator, None).admission.num_requests == 0)


def test_a_stream_is_finished_after_the_servers_end_was_asked_for() -> None:
    app = front(says("The miller counts the sacks of flour", pause_s=0.05))
    with streaming(app) as response:
        parts = response.iter_raw()
        text = next(parts).decode()
        app.front.registry.refuse_new_work()
        text += b"".join(parts).decode()
    chunks = chunks_of(COMPLETIONS, text)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "The miller counts the sacks of flour"
