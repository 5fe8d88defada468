"""Errors of Anthropic's routes: its envelope and types, whichever layer refuses, with our own fields beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from server.api.dialects.anthropic.dialect import error_type
from server.availability_errors import EngineRestarting, QueueFull, RateLimited
from server.errors import DeadlineExceeded, InvalidRequest, ModelNotFound, NumericalError, SluiceError
from tests.api.openai.fronts import Front, fronted
from tests.api.shell import client_of, shell

PATH = "/v1/messages"
PATHS = [PATH, f"{PATH}/count_tokens"]
HELLO = {"max_tokens": 40, "messages": [{"role": "user", "content": "Hello"}]}
KEY = "a-key-of-sixteen-letters"


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with fronted() as front:
        yield front


def check(response: Any, status: int, type_: str, code: str) -> None:
    body = response.json()
    assert (response.status_code, body["type"], body["error"]["type"]) == (status, "error", type_)
    assert body["error"]["code"] == code and "param" in body["error"] and body["error"]["message"]
    assert body["request_id"] == body["error"]["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize("path", PATHS)
def test_a_wrong_body_is_an_invalid_request(front: Front, path: str) -> None:
    check(front.send(path, 400, messages=[]), 400, "invalid_request_error", "invalid_value")
    check(front.client.post(path, content="{", headers={"Content-Type": "application/json"}), 400,
          "invalid_request_error", "invalid_json")  # fmt: skip
    check(front.client.post(path, content="a=b"), 415, "invalid_request_error", "unsupported_media_type")


@pytest.mark.parametrize("path", PATHS)
def test_an_unknown_model_is_not_found(front: Front, path: str) -> None:
    check(front.send(path, 404, model="nowhere", **HELLO), 404, "not_found_error", "model_not_found")


@pytest.mark.parametrize("path", PATHS)
def test_a_large_body_is_too_large(front: Front, path: str) -> None:
    check(front.send(path, 413, x="a" * 40_000_000), 413, "request_too_large", "body_too_large")


@pytest.mark.parametrize("path", PATHS)
def test_a_missing_key_is_an_authentication_error(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("SLUICE_API_KEYS", KEY)
    check(client_of(shell()).post(path, json=HELLO), 401, "authentication_error", "invalid_api_key")


@pytest.mark.parametrize("path", PATHS)
def test_a_server_that_loads_is_overloaded(path: str) -> None:
    check(client_of(shell()).post(path, json=HELLO), 503, "overloaded_error", "starting")


@pytest.mark.parametrize(
    ("error", "type_"),
    [
        (InvalidRequest("x"), "invalid_request_error"),
        (ModelNotFound("x", "generate", []), "not_found_error"),
        (RateLimited("x"), "rate_limit_error"),
        (QueueFull("x"), "overloaded_error"),
        (EngineRestarting("x"), "overloaded_error"),
        (DeadlineExceeded(), "timeout_error"),
        (NumericalError("x"), "api_error"),
    ],
)
def test_each_error_has_the_type_that_anthropics_clients_know(error: SluiceError, type_: str) -> None:
    assert error_type(error) == type_


def test_a_failure_in_a_stream_has_the_same_body() -> None:
    def script(command: Any) -> Iterator[Any]:
        yield NumericalError("Not finite.")

    with fronted(script) as front:
        check(front.client.post(PATH, json=HELLO), 500, "api_error", "numerical_error")


def test_other_routes_keep_openais_envelope(front: Front) -> None:
    body = front.send("/v1/chat/completions", 404, model="nowhere", messages=HELLO["messages"]).json()
    assert body["error"]["type"] == "invalid_request_error" and body.keys() == {"error", "error_type"}


@pytest.mark.parametrize("path", PATHS)
def test_the_document_describes_the_envelope(front: Front, path: str) -> None:
    document = front.client.get("/openapi.json").json()
    described = document["paths"][path]["post"]["responses"]["404"]["content"]["application/json"]["schema"]
    assert "MessagesErrorReply" in json.dumps(described)
    schema = {**described, "components": document["components"]}
    answer = front.send(path, 404, model="nowhere", **HELLO).json()
    jsonschema.validate(answer, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**answer, "type": "message"}, schema)
