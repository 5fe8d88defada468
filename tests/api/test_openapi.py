"""The documentation is true: its statuses, types and shapes are those that are sent, and all limits are in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel
from starlette.testclient import TestClient

from server.api.bodies.schemas import GenerateParameters, StrictModel
from server.api.http import errors as http_errors
from server.api.openapi import replies
from server.api.openapi.errors import OF_KEYS, OF_THE_ROUTER, tree
from server.availability_errors import QueueFull
from server.errors import InsufficientMemory, NumericalError, SluiceError
from server.serving.options.table import OPTIONS
from tests.api.documented import STREAMS, all_tasks, documented, validator
from tests.api.openai.fronts import CHAT, COMPLETIONS, HELLO
from tests.api.scripted import front, one_token_then
from tests.api.shell import client_of, shell

WORK = {
    "/": {"inputs": "The mill"},
    "/generate": {"inputs": ["The mill"], "parameters": {"details": True, "top_n_tokens": 2}},
    "/generate_stream": {"inputs": "The mill", "parameters": {"max_new_tokens": 4}},
    "/translate": {"inputs": "The mill", "parameters": {"src_lang": "en", "tgt_lang": "de"}},
    "/summarize": {"inputs": "The mill"},
    "/classify": {"inputs": "The mill"},
    "/ner": {"inputs": "The mill in Paris"},
    "/fill-mask": {"inputs": "The [MASK]"},
    "/question-answering": {"inputs": {"question": "Who?", "context": "Bob"}},
    "/embed": {"inputs": "The mill"},
    "/similarity": {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
    "/predict": {"inputs": "The mill"},
    "/zero-shot-classification": {"inputs": "a", "parameters": {"candidate_labels": ["x"]}, "model": "nli"},
    "/rerank": {"query": "a", "texts": ["b"], "return_text": True, "model": "pairs"},
    "/v1/rerank": {"query": "a", "documents": ["b"], "model": "pairs"},
    "/v2/rerank": {"query": "a", "documents": [{"text": "b"}], "model": "pairs"},
    "/score": {"text_1": "a", "text_2": ["b"], "model": "pairs"},
    "/v1/score": {"queries": "a", "documents": ["b"], "model": "pairs"},
    "/tokenize": {"prompt": "The mill", "return_token_strs": True},
    "/detokenize": {"tokens": [5]},
    "/v1/embeddings": {"input": ["a"]},
    "/v1/classify": {"input": ["a"]},
    CHAT: {**HELLO, "logprobs": True, "top_logprobs": 1},
    COMPLETIONS: {"prompt": "The mill", "logprobs": 1},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {**HELLO, "max_tokens": 4},
    "/v1/messages/count_tokens": HELLO,
}
"""A sound body for each operation."""


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with all_tasks() as client:
        yield client


@pytest.fixture(scope="module")
def document(client: TestClient) -> Any:
    return client.get("/openapi.json").json()


def test_every_body_and_every_read_is_answered_as_documented(client: TestClient, document: Any) -> None:
    posted = {path for path, item in document["paths"].items() if "post" in item}
    assert posted == set(WORK)
    for path, body in WORK.items():
        response = client.post(path, json=body)
        assert response.status_code == 200, (path, response.text)
        documented(document, "post", path, response)
    for path in (path for path, item in document["paths"].items() if "get" in item):
        shown = path.replace("{name}", "words")
        documented(document, "get", path, client.get(shown))


@pytest.mark.parametrize("path", STREAMS)
def test_every_stream_is_answered_as_documented(client: TestClient, document: Any, path: str) -> None:
    body = {**WORK[path], "stream": True}
    if path == "/generate":
        body["inputs"] = "The mill"
    response = client.post(path, json=body)
    content = documented(document, "post", path, response)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
    assert len(lines) > 2
    data = content["itemSchema"]["properties"]["data"]
    if "data: [DONE]" in response.text:
        data, done = data["anyOf"]
        assert done["const"] == "[DONE]"
    for line in lines:
        validator(document, data["contentSchema"]).validate(json.loads(line))


TELLING = {
    "/translate": {
        "inputs": "The mill. It runs.",
        "parameters": {"src_lang": "en", "tgt_lang": "de", "details": True},
        "split": "sentences",
    },
    CHAT: {**WORK[CHAT], "return_token_ids": True, "prompt_logprobs": 1},
    COMPLETIONS: {**WORK[COMPLETIONS], "return_token_ids": True, "prompt_logprobs": 1, "echo": True},
    "/generate": {"inputs": "a", "parameters": {"details": True, "top_n_tokens": 1, "decoder_input_details": True}},
}
"""Bodies that ask for everything that an answer may tell."""


@pytest.mark.parametrize("path", TELLING)
def test_an_answer_has_no_field_that_is_not_documented(client: TestClient, document: Any, path: str) -> None:
    response = client.post(path, json=TELLING[path])
    content = documented(document, "post", path, response)
    validator(closed(document), content["schema"]).validate(response.json())


def closed(document: Any) -> Any:
    """The document with answers that have no other fields than those that it names."""
    schemas = {
        name: {**schema, "additionalProperties": False} if schema.get("type") == "object" else schema
        for name, schema in document["components"]["schemas"].items()
    }
    return {**document, "components": {"schemas": schemas}}


BROKEN = [
    ({"content": b"{"}, "application/json"),
    ({"content": b"{}"}, "text/plain"),
    ({"content": b"[]"}, "application/json"),
    ({"content": b"x" * 5_000_000}, "application/json"),
]


@pytest.mark.parametrize("path", WORK)
def test_every_refusal_is_answered_as_documented(client: TestClient, document: Any, path: str) -> None:
    for content, media_type in BROKEN:
        response = client.post(path, headers={"content-type": media_type}, **content)
        assert response.status_code in (400, 413, 415, 422), response.text
        documented(document, "post", path, response)


@pytest.mark.parametrize("path", WORK)
def test_an_unknown_model_is_answered_as_documented(client: TestClient, document: Any, path: str) -> None:
    response = client.post(path, json={**WORK[path], "model": "nobody"})
    assert response.status_code == 404
    documented(document, "post", path, response)


@pytest.mark.parametrize("path", [path for path in WORK if path != "/detokenize"])
def test_a_server_that_is_loading_answers_as_documented(document: Any, path: str) -> None:
    loading = client_of(shell())
    response = loading.post(path, json={**WORK[path], "model": None})
    assert response.status_code == 503
    documented(document, "post", path, response)
    for read in (path for path, item in document["paths"].items() if "get" in item):
        documented(document, "get", read, loading.get(read.replace("{name}", "words")))


@pytest.mark.parametrize("error", [QueueFull("Full.", retry_after_s=1), NumericalError("x"), InsufficientMemory("x")])
def test_a_failure_is_answered_as_documented(document: Any, error: SluiceError) -> None:
    script = one_token_then(error)
    client = client_of(front(script))
    for path in ("/generate", COMPLETIONS):
        body = {"inputs": "a"} if path == "/generate" else {"prompt": "a"}
        documented(document, "post", path, client.post(path, json=body))


def test_a_key_is_documented_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_API_KEYS", "a-key-of-sixteen-letters")
    client = client_of(shell())
    headers = {"Authorization": "Bearer a-key-of-sixteen-letters"}
    found = client.get("/openapi.json", headers=headers).json()
    for path, item in found["paths"].items():
        for method, operation in item.items():
            response = client.request(method, path.replace("{name}", "x"))
            assert (response.status_code == 401) == bool(operation.get("security")), path
            documented(found, method, path, response)


def test_every_error_of_http_is_documented_for_every_operation(document: Any) -> None:
    general = {
        error
        for error in tree(SluiceError)
        if error.__module__ == http_errors.__name__ and not issubclass(error, (*OF_KEYS, *OF_THE_ROUTER))
    }
    for path, item in document["paths"].items():
        if "post" in item:
            text = json.dumps(item["post"]["responses"])
            assert all(f"`{error.code}`" in text for error in general), path


def test_no_answer_is_documented_as_anything(document: Any) -> None:
    for path, item in document["paths"].items():
        for operation in item.values():
            for media_type, content in operation["responses"]["200"]["content"].items():
                assert content.get("schema") or content["itemSchema"], (path, media_type)
    assert set(replies.REPLIES) <= set(document["paths"])


def test_bodies_and_answers_have_names_of_their_own(document: Any) -> None:
    bodies = {model.__name__ for model in _below(StrictModel)}
    assert not bodies & replies.components().keys()


def _below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for below in model.__subclasses__():
        yield below
        yield from _below(below)


def test_every_option_has_its_meaning_and_its_range(document: Any) -> None:
    for name in ("GenerateParameters", "ChatBody", "CompletionBody", "ResponsesBody", "MessagesBody"):
        fields = document["components"]["schemas"][name]["properties"]
        for option in GenerateParameters.model_fields:
            if (name, option) in (("ChatBody", "logprobs"), ("CompletionBody", "logprobs")):
                continue
            words = fields[option]["description"]
            range_ = OPTIONS[option].range
            assert range_ is None or range_.rule in words, option
    schemas = document["components"]["schemas"]
    assert schemas["GenerateParameters"]["properties"]["temperature"]["anyOf"][0]["maximum"] == 100
    assert schemas["ChatBody"]["properties"]["max_tokens"]["anyOf"][0]["minimum"] == 1


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        ("top_p", -0.1), ("top_p", 1.01), ("stop", [""]), ("stop", ["x" * 257]), ("stop", ["x"] * 99),
        ("logit_bias", {"01": 1}), ("logit_bias", {"1": 101}), ("logit_bias", [[1, True]]),
        ("bad_words_ids", [[]]), ("allowed_token_ids", []), ("stop_token_ids", [-1]),
        ("exponential_decay_length_penalty", [1, 0]), ("sequence_bias", [[[1], 101]]),
    ],
)  # fmt: skip
def test_a_range_is_in_the_schema(document: Any, option: str, wrong: Any) -> None:
    schema = document["components"]["schemas"]["GenerateParameters"]
    with pytest.raises(jsonschema.ValidationError):
        validator(document, schema).validate({option: wrong})


def test_fields_that_are_refused_are_documented_with_what_is_taken(client: TestClient, document: Any) -> None:
    for name, path in (("ChatBody", CHAT), ("CompletionBody", COMPLETIONS)):
        schema = document["components"]["schemas"][name]
        refused = {key: field for key, field in schema["properties"].items() if "Not supported" in str(field)}
        assert len(refused) > 10
        for key, field in refused.items():
            for value in field.get("enum", ()):
                assert client.post(path, json={**WORK[path], key: value}).status_code == 200, key
