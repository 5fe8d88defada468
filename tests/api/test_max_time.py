"""``max_time``: what clients of each dialect see of a request whose time is over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from server.errors import DeadlineExceeded
from server.protocol import Generate, Tokens
from tests.api.openai.fronts import CHAT, COMPLETIONS, HELLO, fronted
from tests.api.scripted import MILL, Step, front, says, silent, talks_for_ever
from tests.api.shell import client_of


def cut(command: Generate) -> Iterator[Step]:
    """Two tokens, and the worker ends the request for its time."""
    yield Tokens(command.request_id, [MILL])
    yield Tokens(command.request_id, [MILL], "max_time")


def too_late(command: Generate) -> Iterator[Step]:
    yield DeadlineExceeded()


def post(script: Any, path: str, body: dict[str, Any], **settings: Any) -> Any:
    return client_of(front(script, **settings)).post(path, json=body)


def test_generate_tells_the_reason() -> None:
    body = {"inputs": "a", "parameters": {"max_time": 5, "details": True}}
    reply = post(cut, "/generate", body)
    assert reply.json()["details"]["finish_reason"] == "max_time"
    assert reply.json()["generated_text"]


def test_a_stream_ends_with_the_reason() -> None:
    reply = post(cut, "/generate", {"inputs": "a", "stream": True, "parameters": {"max_time": 5}})
    events = [json.loads(line.removeprefix("data:")) for line in reply.text.splitlines() if line.startswith("data:")]
    assert events[-1]["details"]["finish_reason"] == "max_time"


def test_openais_routes_tell_a_length_and_the_reason_beside_it() -> None:
    with fronted(cut) as served:
        for path, body in ((CHAT, HELLO), (COMPLETIONS, {"prompt": "a"})):
            [choice] = served.send(path, **body, max_time=5.0).json()["choices"]
            assert choice["finish_reason"] == "length"
            assert choice["stop_reason"] == "max_time"


def test_anthropics_and_responses_clients_see_an_answer_that_was_cut() -> None:
    with fronted(cut) as served:
        message = served.send("/v1/messages", max_tokens=9, max_time=5.0, **HELLO).json()
        assert message["stop_reason"] == "max_tokens"
        response = served.send("/v1/responses", input="a", max_time=5.0).json()
        assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


def test_before_the_first_token_the_status_says_so() -> None:
    reply = post(too_late, "/generate", {"inputs": "a", "parameters": {"max_time": 5}})
    assert reply.status_code == 504
    assert reply.json()["error"]["code"] == "deadline_exceeded"


def test_the_worker_is_told_when_the_time_is_over() -> None:
    app = front(says("mill"))
    client_of(app).post("/generate", json={"inputs": "a", "parameters": {"max_time": 1000}})
    client_of(app).post("/generate", json={"inputs": "a"})
    limited, free = app.state.worker.commands
    assert limited.deadline_s is not None
    assert free.deadline_s is None


def test_the_servers_own_limit_holds_for_every_request_and_max_time_can_only_shorten_it() -> None:
    app = front(says("mill"), request_timeout_s=100.0)
    for parameters in ({}, {"max_time": 1.0}, {"max_time": 10_000.0}):
        client_of(app).post("/generate", json={"inputs": "a", "parameters": parameters})
    by_default, short, long = [command.deadline_s for command in app.state.worker.commands]
    assert short < by_default - 50
    assert abs(long - by_default) < 50


def test_a_time_that_is_over_before_the_worker_has_it_starts_nothing() -> None:
    app = front(talks_for_ever)
    reply = client_of(app).post("/generate", json={"inputs": "a", "parameters": {"max_time": 1e-9}})
    assert reply.status_code == 504
    assert app.state.worker.commands == []


def test_of_several_prompts_those_without_a_token_are_answered_empty() -> None:
    def script(command: Generate) -> Iterator[Step]:
        yield from cut(command) if command.request_id.endswith("-0") else too_late(command)

    body = {"inputs": ["a", "b"], "parameters": {"max_time": 5, "details": True}}
    first, second = post(script, "/generate", body).json()
    assert first["generated_text"]
    assert second["generated_text"] == ""
    assert second["details"]["finish_reason"] == "max_time"
    assert post(too_late, "/generate", body).status_code == 504


@pytest.mark.parametrize("value", [0, -1, 1e9, "5", True])
def test_refuses_times_out_of_range(value: Any) -> None:
    reply = post(silent, "/generate", {"inputs": "a", "parameters": {"max_time": value}})
    assert reply.status_code == 422
    assert reply.json()["error"]["param"] == "parameters.max_time"
