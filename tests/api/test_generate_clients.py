"""huggingface_hub's InferenceClient works with the URL of /generate as its model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import TextGenerationError, ValidationError

from server.errors import NumericalError
from server.protocol import Tokens
from tests.api.scripted import END_ID, TOKENIZER, front, says
from tests.api.shell import listening

TEXT = "The mill 你好 runs.\r\n\u0085\u2028\u2029 On."


@pytest.fixture(scope="module")
def client() -> Iterator[InferenceClient]:
    with listening(front(says(TEXT))) as port:
        yield InferenceClient(model=f"http://127.0.0.1:{port}/generate", token="none")


def test_a_text_comes_back(client: InferenceClient) -> None:
    assert client.text_generation("Hello") == TEXT


def test_details_are_parsed(client: InferenceClient) -> None:
    answer = client.text_generation("Hello", details=True, max_new_tokens=50, seed=3, stop=["zzz"])
    assert answer.generated_text == TEXT
    assert answer.details.finish_reason == "eos_token" and answer.details.seed == 3
    assert "".join(token.text for token in answer.details.tokens) == TEXT


def test_a_stream_of_texts(client: InferenceClient) -> None:
    assert "".join(client.text_generation("Hello", stream=True)) == TEXT


def test_a_stream_of_details(client: InferenceClient) -> None:
    events = list(client.text_generation("Hello", stream=True, details=True))
    assert [event.token.id for event in events] == [*TOKENIZER.encode(TEXT).ids, END_ID]
    assert events[-1].generated_text == TEXT
    assert events[-1].details.finish_reason == "eos_token"
    assert events[-1].details.input_length == len(TOKENIZER.encode("Hello").ids)


def test_every_neutral_argument_is_taken(client: InferenceClient) -> None:
    text = client.text_generation(
        "Hello",
        details=False,
        stream=False,
        best_of=1,
        decoder_input_details=False,
        do_sample=False,
        frequency_penalty=0.0,
        max_new_tokens=40,
        repetition_penalty=1.0,
        return_full_text=False,
        seed=1,
        stop=[],
        temperature=1.0,
        top_k=0,
        top_n_tokens=0,
        top_p=1.0,
        truncate=100,
        typical_p=1.0,
        watermark=False,
    )
    assert text == TEXT


def test_sampling_arguments_are_taken(client: InferenceClient) -> None:
    answer = client.text_generation(
        "Hello", do_sample=True, temperature=0.7, top_p=0.9, top_k=20, typical_p=0.9, return_full_text=True
    )
    assert answer == "Hello" + TEXT


def test_a_refusal_shows_its_message_and_is_the_kind_of_error_that_the_client_has_for_it(
    client: InferenceClient,
) -> None:
    with pytest.raises(ValidationError, match="watermark is not supported"):
        client.text_generation("Hello", watermark=True)
    with pytest.raises(ValidationError, match="max_new_tokens"):
        list(client.text_generation("Hello", max_new_tokens=10**6, stream=True))


def test_a_failure_inside_a_stream_is_raised() -> None:
    def script(command):
        yield Tokens(command.request_id, TOKENIZER.encode("mill").ids)
        yield NumericalError("Not finite.")

    with listening(front(script)) as port:
        client = InferenceClient(model=f"http://127.0.0.1:{port}/generate", token="none")
        with pytest.raises(TextGenerationError, match="numerical_error"):
            list(client.text_generation("Hello", stream=True))
