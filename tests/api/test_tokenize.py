"""``/tokenize`` and its kin speak vLLM's shapes, and lm-evaluation-harness' remote tokenizer works with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.protocol import TokenizerFiles
from server.text.tokenizer import Tokenizer
from tests.api.openai.fronts import fronted
from tests.api.scripted import MAX_MODEL_LEN, TOKENIZER, front, says
from tests.encoder_app import client_of, tiny_worker
from tests.tiny_encoders import tiny_tokenizer

TEXT = "The mill, 你好 😀"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """With a loop of its own, for the sandbox lives as long as its loop."""
    with TestClient(front(says(""))) as client:
        yield client


def post(client: TestClient, path: str, *, status: int = 200, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


def test_a_prompt_becomes_its_tokens_with_their_number_and_the_models_length(client: TestClient) -> None:
    ids = TOKENIZER.encode(TEXT).ids
    expected = {"count": len(ids), "max_model_len": MAX_MODEL_LEN, "tokens": ids, "token_strs": None}
    assert post(client, "/tokenize", prompt=TEXT) == expected
    assert post(client, "/tokenize", prompt="")["count"] == len(TOKENIZER.encode("").ids)


def test_special_tokens_are_left_out_where_the_client_says_so() -> None:
    encoder = client_of(tiny_worker("words", "bert", "fill-mask"))
    tokenizer = tiny_tokenizer("wordpiece")
    assert post(encoder, "/tokenize", prompt="Alice met Bob")["tokens"] == tokenizer("Alice met Bob")["input_ids"]
    bare = post(encoder, "/tokenize", prompt="Alice met Bob", add_special_tokens=False)
    assert bare["tokens"] == tokenizer("Alice met Bob", add_special_tokens=False)["input_ids"]


def test_tokens_are_written_as_in_the_vocabulary_on_request(client: TestClient) -> None:
    answer = post(client, "/tokenize", prompt=TEXT, return_token_strs=True)
    assert answer["token_strs"] == TOKENIZER.encode(TEXT).tokens


def test_detokenize_gives_the_text_back_special_tokens_too(client: TestClient) -> None:
    for text in (TEXT, "", "a<|eos|>b"):
        ids = post(client, "/tokenize", prompt=text, add_special_tokens=False)["tokens"]
        assert post(client, "/detokenize", tokens=ids) == {"prompt": text}


@pytest.mark.parametrize("tokens", [[-1], [10**6], [10**18], ["a"], [1.5], None])
def test_what_is_no_token_is_refused(client: TestClient, tokens: Any) -> None:
    error = post(client, "/detokenize", tokens=tokens, status=422)
    assert error["param"].startswith("tokens")


def test_a_chat_becomes_the_tokens_that_a_chat_request_would_have(client: TestClient) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    with fronted() as chat:
        answer = post(chat.client, "/tokenize", messages=messages)
        chat.client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})
        assert answer["tokens"] == chat.command.prompt_ids
        without = post(chat.client, "/tokenize", messages=messages, add_generation_prompt=False)
        assert 0 < without["count"] < answer["count"]
        assert answer["tokens"][: without["count"]] == without["tokens"]
    assert post(client, "/tokenize", messages=messages, status=422)["param"] == "messages"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "prompt"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"prompt": "a", "chat_template": "{{ x }}"}, "chat_template"),
        ({"prompt": "a", "model": "gpt-4"}, "model"),
        ({"prompt": ["a"]}, "prompt"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client: TestClient, body: dict[str, Any], param: str) -> None:
    assert post(client, "/tokenize", status=404 if param == "model" else 422, **body)["param"] == param


def test_without_a_name_the_model_that_generates_is_asked_and_by_name_any() -> None:
    """lm-evaluation-harness names no model."""
    words = tiny_worker("words", "bert", "fill-mask")
    mood = tiny_worker("mood", "roberta", "classify")
    client = client_of(mood, words)
    assert post(client, "/tokenize", prompt="Alice")["tokens"] == tiny_tokenizer("bytes")("Alice")["input_ids"]
    named = post(client, "/tokenize", prompt="Alice", model="words")
    assert named["tokens"] == tiny_tokenizer("wordpiece")("Alice")["input_ids"]


def test_tokenizer_info_tells_special_tokens_and_chat_template(client: TestClient) -> None:
    info = client.get("/tokenizer_info").json()
    files: TokenizerFiles = client.app.front.registry.find(None).ready.tokenizer  # type: ignore[attr-defined]
    assert (info["bos_token"], info["eos_token"]) == (files.bos_token, files.eos_token)
    assert info["chat_template"] == files.chat_template
    assert info["model_max_length"] == MAX_MODEL_LEN
    assert client.get("/tokenizer_info", params={"model": "gpt-4"}).status_code == 404


def test_the_calls_of_lm_evaluation_harness_remote_tokenizer_fit_together(client: TestClient) -> None:
    """It asks for the special tokens' text, and for their ids by tokenising them without special tokens."""
    eos = client.get("/tokenizer_info").json()["eos_token"]
    [eos_id] = post(client, "/tokenize", prompt=eos, add_special_tokens=False)["tokens"]
    assert Tokenizer(TOKENIZER.files).backend.token_to_id(eos) == eos_id
    assert post(client, "/detokenize", tokens=[eos_id]) == {"prompt": eos}
