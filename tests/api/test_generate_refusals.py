"""Every refusal of /generate names the field, the value and the limit, before the answer has begun."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from server import caller
from server.api.bodies.schemas import GenerateParameters
from server.availability_errors import EngineRestarting
from server.caller import Caller
from server.errors import NumericalError
from server.protocol import Tokens
from server.serving.generator import ServedGenerator
from tests.api.scripted import MAX_MODEL_LEN, TOKENIZER, VOCAB_SIZE, front, says

ROOM = MAX_MODEL_LEN - len(TOKENIZER.encode("Hello").ids)

REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"max_new_tokens": 0}, "max_new_tokens", "at least 1"),
    ({"max_new_tokens": -1}, "max_new_tokens", "at least 1"),
    ({"max_new_tokens": ROOM + 1}, "max_new_tokens", f"at most {ROOM}"),
    ({"max_new_tokens": 10**18}, "max_new_tokens", f"at most {ROOM}"),
    ({"min_new_tokens": -1}, "min_new_tokens", "at least 0"),
    ({"min_new_tokens": 6, "max_new_tokens": 5}, "min_new_tokens", "the minimum 6 is greater than the maximum 5"),
    ({"temperature": -0.1}, "temperature", "from 0 to 100"),
    ({"temperature": 101}, "temperature", "from 0 to 100"),
    ({"top_k": -1}, "top_k", "from 0 to"),
    ({"top_k": VOCAB_SIZE + 1}, "top_k", str(VOCAB_SIZE)),
    ({"top_p": 1.01}, "top_p", "from 0 to 1"),
    ({"top_p": -0.01}, "top_p", "from 0 to 1"),
    ({"min_p": -0.1}, "min_p", "from 0 to 1"),
    ({"min_p": 1.1}, "min_p", "from 0 to 1"),
    ({"typical_p": 0}, "typical_p", "greater than 0 and at most 1"),
    ({"typical_p": 2}, "typical_p", "greater than 0 and at most 1"),
    ({"repetition_penalty": 0}, "repetition_penalty", "from 0.01 to 100"),
    ({"repetition_penalty": 1e-308}, "repetition_penalty", "from 0.01 to 100"),
    ({"repetition_penalty": 1e3}, "repetition_penalty", "from 0.01 to 100"),
    ({"presence_penalty": 2.1}, "presence_penalty", "from -2 to 2"),
    ({"presence_penalty": -2.1}, "presence_penalty", "from -2 to 2"),
    ({"frequency_penalty": 2.1}, "frequency_penalty", "from -2 to 2"),
    ({"seed": 2**63}, "seed", "from -9223372036854775808 to 9223372036854775807"),
    ({"stop": [""]}, "stop", "1 to 256 characters"),
    ({"stop": ""}, "stop", "1 to 256 characters"),
    ({"stop": "x" * 257}, "stop", "1 to 256 characters"),
    ({"stop": list("abcdefghijklmnopq")}, "stop", "at most 16"),
    ({"stop": 5}, "stop", "a string or a list of strings"),
    ({"stop": ["a", 5]}, "stop", "a string or a list of strings"),
    ({"stop_token_ids": [-1]}, "stop_token_ids", str(VOCAB_SIZE - 1)),
    ({"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids", str(VOCAB_SIZE - 1)),
    ({"stop_token_ids": [2**31]}, "stop_token_ids", str(VOCAB_SIZE - 1)),
    ({"stop_token_ids": [2**63]}, "stop_token_ids", str(VOCAB_SIZE - 1)),
    ({"stop_token_ids": [1] * 129}, "stop_token_ids", "at most 128"),
    ({"truncate": 0}, "truncate", "at least 1"),
    ({"do_sample": False, "temperature": 0.5}, "temperature", "do_sample"),
    ({"do_sample": False, "top_k": 3}, "top_k", "do_sample"),
    ({"do_sample": False, "top_p": 0.5}, "top_p", "do_sample"),
    ({"do_sample": False, "min_p": 0.5}, "min_p", "do_sample"),
    ({"do_sample": False, "typical_p": 0.5}, "typical_p", "do_sample"),
    ({"do_sample": True, "temperature": 0}, "temperature", "do_sample"),
    ({"watermark": True}, "watermark", "not supported"),
    ({"best_of": 2}, "best_of", "sample"),
    ({"top_n_tokens": 3}, "top_n_tokens", "set details to true"),
    ({"decoder_input_details": True}, "decoder_input_details", "set details to true"),
    ({"grammar": {"type": "yaml", "value": {}}}, "grammar.type", "one of json"),
]


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(front(says("never")), raise_server_exceptions=False)


def refused(client: TestClient, body: Any, status: int = 422) -> dict[str, Any]:
    response = client.post("/generate", json=body)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("parameters", "field", "limit"), REFUSALS, ids=lambda value: str(value)[:40])
def test_a_value_out_of_range_is_refused_by_name(
    client: TestClient, parameters: dict[str, Any], field: str, limit: str, stream: bool
) -> None:
    error = refused(client, {"inputs": "Hello", "parameters": parameters, "stream": stream})
    assert error["param"] == f"parameters.{field}"
    assert field in error["message"] and limit in error["message"]
    assert client.app.state.worker.commands == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_token_that_the_tokenizer_has_and_the_model_has_not_is_refused(stream: bool) -> None:
    """A padding token, added for training and never given a row in the embedding."""
    app = front(says("yes"), vocab_size=max(TOKENIZER.encode("Hello").ids) + 1)
    client = TestClient(app)
    assert client.post("/generate", json={"inputs": "Hello", "stream": stream}).status_code == 200
    error = refused(client, {"inputs": f"Hello{TOKENIZER.token_text(VOCAB_SIZE - 1)}", "stream": stream})
    assert error["param"] == "inputs"
    assert "the model does not have" in error["message"]


ACCEPTED_AT_THE_LIMIT = [
    {"max_new_tokens": ROOM},
    {"min_new_tokens": ROOM},
    {"temperature": 100},
    {"top_k": VOCAB_SIZE},
    {"top_p": 1.0},
    {"top_p": 1e-308},
    {"min_p": 1.0},
    {"repetition_penalty": 0.01},
    {"presence_penalty": 2},
    {"seed": 0},
    {"stop": ["x" * 256] * 16},
    {"seed": -(2**63)},
    {"seed": -1},
    {"top_p": 0},
    {"stop_token_ids": [VOCAB_SIZE - 1] * 128},
    {"truncate": 10**6},
    {"watermark": False, "best_of": 1, "decoder_input_details": False},
]


@pytest.mark.parametrize("parameters", ACCEPTED_AT_THE_LIMIT, ids=str)
def test_the_limit_itself_is_accepted(parameters: dict[str, Any]) -> None:
    client = TestClient(front(says("yes")))
    response = client.post("/generate", json={"inputs": "Hello", "parameters": parameters})
    assert response.status_code == 200, response.text


SCALARS = (int | None, float | None, bool | None)


def wrong_types() -> list[tuple[str, Any]]:
    """For every field the values that look like its type and are not."""
    wrong: dict[str, list[Any]] = {
        "int": [True, 1.0, "1", [1], {}],
        "float": [True, "1", [1.0]],
        "bool": [0, 1, "true"],
    }
    return [
        (name, value)
        for name, field in GenerateParameters.model_fields.items()
        for kind, values in wrong.items()
        if str(field.annotation).startswith(kind + " ")
        for value in values
    ]


def test_the_table_of_wrong_types_has_every_scalar_field() -> None:
    scalars = {name for name, field in GenerateParameters.model_fields.items() if field.annotation in SCALARS}
    assert {name for name, _ in wrong_types()} == scalars and len(scalars) > 40


@pytest.mark.parametrize(("name", "value"), wrong_types())
def test_nothing_is_converted(client: TestClient, name: str, value: Any) -> None:
    error = refused(client, {"inputs": "Hello", "parameters": {name: value}})
    assert error["param"] == f"parameters.{name}"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"inputs": "a", "parameters": {"max_size": 5}}, "parameters.max_size"),
        ({"inputs": "a", "parameters": {"max_tokens": 5}}, "parameters.max_tokens"),
        ({"inputs": "a", "options": {}}, "options"),
        ({"parameters": {}}, "inputs"),
        ({"inputs": None}, "inputs"),
        ({"inputs": 5}, "inputs"),
        ({"inputs": ["a", None]}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": ""}, "inputs"),
        ({"inputs": ["a", ""]}, "inputs"),
        ({"inputs": "a", "stream": "yes"}, "stream"),
        ({"inputs": "a", "parameters": []}, "parameters"),
        ({"inputs": ["a"], "stream": True}, "stream"),
    ],
)
def test_a_body_of_another_shape_is_refused_by_name(client: TestClient, body: Any, param: str) -> None:
    assert refused(client, body)["param"] == param


def test_an_unknown_field_is_told_which_there_are(client: TestClient) -> None:
    error = refused(client, {"inputs": "a", "parameters": {"max_tokens": 5}})
    assert error["code"] == "unknown_parameter" and "max_new_tokens" in error["message"]


def test_a_prompt_that_fills_the_context_is_refused_with_its_length(client: TestClient) -> None:
    text = "mill " * MAX_MODEL_LEN
    error = refused(client, {"inputs": text, "stream": True})
    assert error["code"] == "context_length_exceeded"
    assert str(len(TOKENIZER.encode(text).ids)) in error["message"] and str(MAX_MODEL_LEN - 1) in error["message"]


def test_too_many_inputs_are_refused(client: TestClient) -> None:
    assert refused(client, {"inputs": ["a"] * 33}, status=413)["code"] == "batch_too_large"


def test_an_unknown_model_is_a_404(client: TestClient) -> None:
    assert refused(client, {"inputs": "a", "model": "other"}, status=404)["code"] == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_a_503_with_a_time_to_come_back(stream: bool) -> None:
    app = front(says("yes"), max_queued_requests=1)
    admission = app.front.registry.get(ServedGenerator, None).admission
    caller.set_current(Caller.of_address("testclient"))
    with admission.admit(10):
        body = {"inputs": "a", "stream": stream}
        response = TestClient(app).post("/generate", json=body)
    caller.set_current(caller.NOBODY)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert admission.num_requests == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("error", [NumericalError("Not finite."), EngineRestarting("Wait.", retry_after_s=1)])
def test_a_failure_before_the_first_token_keeps_its_status(stream: bool, error: Any) -> None:
    app = front(lambda command: iter([0.01, error]))
    response = TestClient(app).post("/generate", json={"inputs": "a", "stream": stream})
    assert response.status_code == error.status
    assert response.json()["error"]["code"] == error.code
    assert app.front.registry.get(ServedGenerator, None).admission.num_requests == 0


def test_one_failed_input_ends_the_others_of_its_list() -> None:
    def script(command):
        if command.request_id.endswith("-1"):
            yield NumericalError("Not finite.")
        yield 60.0
        yield Tokens(command.request_id, [5], "length")

    app = front(script)
    response = TestClient(app).post("/generate", json={"inputs": ["a", "b", "c"]})
    assert response.json()["error"]["code"] == "numerical_error"
    assert not app.state.worker.running
