"""Every refusal has one shape, names the field, the value and the rule, and tells nothing of the inside."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from starlette.testclient import TestClient

from server import metrics
from server.availability_errors import QueueFull
from server.errors import NumericalError
from tests.api.scripted import front, one_token_then, says
from tests.api.shell import client_of, shell

FIELDS = {"message", "type", "param", "code", "request_id"}


@pytest.fixture
def client() -> TestClient:
    return client_of(shell())


def error_of(response: Any, status: int, code: str) -> dict[str, Any]:
    """The error in an answer whose shape has been checked."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == FIELDS
    assert error["code"] == code
    assert error["request_id"] == response.headers["x-request-id"]
    assert len(error["message"]) <= 1024
    return error


def test_an_unknown_path_is_a_404_of_the_one_shape(client):
    error_of(client.get("/nothing/here"), 404, "not_found")
    error_of(client.post("/nothing", content=b"\xff" * 10), 404, "not_found")


def test_a_wrong_method_is_a_405_that_names_the_right_one(client):
    response = client.get("/generate")
    error_of(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"inputs": 5}, "inputs", "5: it must be a string or a list of strings"),
        ({"inputs": "a", "parameters": {"top_p": "0.9"}}, "parameters.top_p", "must be a number"),
        ({"inputs": "a", "parameters": {"top_k": True}}, "parameters.top_k", "must be an integer"),
        ({"inputs": "a", "parameters": {"top_k": 1.0}}, "parameters.top_k", "must be an integer"),
        ({"inputs": "a", "parameters": {"do_sample": 1}}, "parameters.do_sample", "must be true or false"),
        ({"inputs": "a", "parameters": {"stop_token_ids": [1, "2"]}}, "parameters.stop_token_ids.1", "integer"),
        ({"inputs": "a", "parameters": [1]}, "parameters", "must be an object"),
        ({"inputs": "a", "stream": "yes"}, "stream", "must be true or false"),
        ({"parameters": {}}, "inputs", "is required"),
        ([], None, "must be an object"),
    ],
)
def test_a_wrong_value_names_the_field_and_the_rule(client, body, param, words):
    error = error_of(client.post("/generate", json=body), 422, "invalid_value")
    assert error["param"] == param
    assert words in error["message"]


def test_an_unknown_field_is_refused_with_the_fields_that_exist(client):
    error = error_of(client.post("/generate", json={"inputs": "a", "prompt": "b"}), 422, "unknown_parameter")
    assert error["param"] == "prompt"
    assert "inputs" in error["message"]
    body = {"inputs": "a", "parameters": {"top_q": 1}}
    error = error_of(client.post("/generate", json=body), 422, "unknown_parameter")
    assert error["param"] == "parameters.top_q"
    assert "top_p" in error["message"]


def test_a_clients_text_in_a_message_is_escaped_and_cut(client):
    error = error_of(
        client.post("/generate", json={"inputs": "a", "\x1b[31m\n" + "x" * 500: 1}), 422, "unknown_parameter"
    )
    assert "\x1b" not in error["message"]
    assert "x" * 65 not in error["message"]


def test_work_is_answered_503_with_a_time_to_come_back_while_the_models_load(client):
    response = client.post("/generate", json={"inputs": "a"})
    error_of(response, 503, "starting")
    assert int(response.headers["retry-after"]) >= 1
    assert response.headers["x-should-retry"] == "true"


def test_a_sound_request_id_is_echoed_and_an_unsound_one_replaced(client):
    assert client.get("/livez", headers={"X-Request-Id": "Ab.9_-z"}).headers["x-request-id"] == "Ab.9_-z"
    for unsound in ("a b", "x" * 65, "", "a\u00e9".encode("latin-1")):
        found = client.get("/livez", headers={"X-Request-Id": unsound}).headers["x-request-id"]
        assert len(found) == 32
        assert found != unsound


def test_an_error_of_ours_is_a_plain_500_and_its_traceback_a_log_line(caplog):
    app = shell()

    def broken() -> None:
        raise RuntimeError("secret detail in /some/path")

    app.add_api_route("/broken", broken)
    with caplog.at_level(logging.ERROR, "sluice"):
        error = error_of(client_of(app).get("/broken"), 500, "internal_error")
    assert "secret" not in str(error)
    assert "secret detail" in caplog.text


def test_a_finished_request_is_one_log_line_without_its_text(client, caplog):
    with caplog.at_level(logging.INFO, "sluice"):
        client.post("/generate", json={"inputs": "my private words"}, headers={"X-Request-Id": "mine"})
        client.get("/livez")
    [line] = [record for record in caplog.records if record.message == "request finished"]
    fields = line.fields
    assert fields["route"] == "/generate"
    assert fields["status"] == 503
    assert fields["error"] == "starting"
    assert fields["client_request_id"] == "mine"
    assert fields["total_ms"] >= 0
    assert "private" not in caplog.text + str(fields)


def test_outcomes_are_counted_by_status_and_reason_and_never_by_a_clients_words(client):
    def value(name: str, **labels: str) -> float:
        return metrics.REGISTRY.get_sample_value(name, labels) or 0.0

    def num_series() -> int:
        return sum(len(metric.samples) for metric in metrics.REGISTRY.collect())

    refused = {"model": "none", "task": "generate", "status": "5xx", "finish_reason": "none"}
    rejected = {"model": "none", "reason": "starting"}
    before = value("sluice_requests_total", **refused), value("sluice_rejections_total", **rejected)
    client.post("/generate", json={"inputs": "a"})
    assert value("sluice_requests_total", **refused) == before[0] + 1
    assert value("sluice_rejections_total", **rejected) == before[1] + 1

    client.get("/x")
    client.post("/generate", json={"inputs": "a", "model": "x"})
    num_before = num_series()
    for i in range(100):
        client.get(f"/x{i}")
        client.request(f"M{i}", "/x")
        client.post("/generate", json={"inputs": "a", "model": f"x{i}"})
    assert num_series() == num_before


def test_errors_have_the_type_that_text_generation_inferences_clients_choose_an_exception_by() -> None:
    client = TestClient(front(says("never")), raise_server_exceptions=False)
    refused = client.post("/generate", json={"inputs": "a", "parameters": {"temperature": -1}})
    assert refused.json()["error_type"] == "validation"
    for failure, kind in ((NumericalError("a"), "generation"), (QueueFull("a"), "overloaded")):
        failing = TestClient(front(one_token_then(failure)), raise_server_exceptions=False)
        assert failing.post("/generate", json={"inputs": "a"}).json()["error_type"] == kind
        last = failing.post("/generate", json={"inputs": "a", "stream": True}).text.strip().splitlines()[-1]
        assert json.loads(last.removeprefix("data: "))["error_type"] == kind
