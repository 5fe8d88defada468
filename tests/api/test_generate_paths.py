"""The other paths of Text Generation Inference: /generate_stream, and / for clients that know the bare URL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from starlette.testclient import TestClient

from tests.api.scripted import TOKENIZER, front, says
from tests.api.shell import listening

TEXT = "The mill 你好 runs."


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(front(says(TEXT)))


def events_of(response: Any) -> list[Any]:
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    return [json.loads(event.removeprefix("data: ")) for event in response.text.removesuffix("\n\n").split("\n\n")]


def test_generate_stream_is_generate_with_stream(client: TestClient) -> None:
    body = {"inputs": "Hello", "parameters": {"seed": 1, "details": True}}
    one, other = (
        events_of(client.post("/generate_stream", json=body)),
        events_of(client.post("/generate", json={**body, "stream": True})),
    )
    for events in (one, other):
        del events[-1]["details"]["timings"]
    assert one == other and one[-1]["generated_text"] == TEXT
    assert len(one) == len(TOKENIZER.encode(TEXT).ids) + 1


def test_generate_stream_refuses_not_to_stream_and_a_list(client: TestClient) -> None:
    for body in ({"inputs": "a", "stream": False}, {"inputs": ["a"]}):
        response = client.post("/generate_stream", json=body)
        assert response.status_code == 422 and response.json()["error"]["param"] == "stream"


def test_the_root_answers_a_list_also_to_one_text(client: TestClient) -> None:
    assert client.post("/", json={"inputs": "Hello"}).json() == [{"generated_text": TEXT}]
    assert client.post("/", json={"inputs": ["Hello"]}).json() == [{"generated_text": TEXT}]


def test_the_root_streams_where_asked_to(client: TestClient) -> None:
    assert events_of(client.post("/", json={"inputs": "Hello", "stream": True}))[-1]["generated_text"] == TEXT


def test_the_root_refuses_like_generate(client: TestClient) -> None:
    response = client.post("/", json={"inputs": "a", "parameters": {"wizard": 1}})
    assert response.status_code == 422 and response.json()["error"]["param"] == "parameters.wizard"


@pytest.fixture(scope="module")
def bare() -> Iterator[InferenceClient]:
    with listening(front(says(TEXT))) as port:
        yield InferenceClient(model=f"http://127.0.0.1:{port}", token="none")


def test_hugging_faces_client_works_with_the_bare_url(bare: InferenceClient) -> None:
    assert bare.text_generation("Hello") == TEXT
    assert "".join(bare.text_generation("Hello", stream=True)) == TEXT
