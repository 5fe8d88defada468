"""``/v1/embeddings`` for OpenAI's clients, ``/embed`` and ``/similarity`` for Hugging Face's: transformers' vectors."""

from __future__ import annotations

import base64
from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.api.embed_app import SIZE, embed_worker, mean_vector, unit
from tests.encoder_app import EngineWorker, client_of, tiny_worker
from tests.tiny_encoders import MAX_MODEL_LEN, TEXTS, tiny_tokenizer

LONG = "the old stone bridge in Chicago " * 40


@cache
def worker() -> EngineWorker:
    return embed_worker()


def post(path: str = "/v1/embeddings", served: EngineWorker | None = None, *, status: int = 200, **body: Any) -> Any:
    response = client_of(served or worker()).post(path, json=body)
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


def vectors(answer: dict[str, Any]) -> np.ndarray:
    assert [entry["index"] for entry in answer["data"]] == list(range(len(answer["data"])))
    return np.array([entry["embedding"] for entry in answer["data"]], dtype=np.float32)


def assert_near(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), atol=1e-4, rtol=1e-4)


def test_texts_of_all_scripts_in_one_batch_get_the_means_of_transformers_last_layer() -> None:
    answer = post(input=TEXTS, model="vectors")
    assert_near(vectors(answer), [mean_vector(text) for text in TEXTS])
    assert answer["object"] == "list" and answer["model"] == "vectors"
    assert {entry["object"] for entry in answer["data"]} == {"embedding"}


def test_one_text_is_a_list_of_one_and_the_usage_counts_its_tokens() -> None:
    answer = post(input="Alice met Bob.")
    assert_near(vectors(answer), [mean_vector("Alice met Bob.")])
    num_tokens = len(worker_ids("Alice met Bob."))
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def worker_ids(text: str) -> list[int]:
    from tests.tiny_encoders import tiny_tokenizer

    return tiny_tokenizer("wordpiece")(text)["input_ids"]


def test_base64_is_the_same_numbers_as_openais_client_reads_them() -> None:
    """openai-python asks for base64 whenever its caller asks for nothing."""
    floats = vectors(post(input=TEXTS[0], encoding_format="float"))[0]
    answer = post(input=TEXTS[0], encoding_format="base64")
    decoded = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), dtype="<f4")
    assert decoded.tolist() == floats.tolist()


def test_vectors_are_normalised_where_the_models_folder_says_so() -> None:
    served = embed_worker(is_normalized=True)
    assert_near(vectors(post(served=served, input=TEXTS[0]))[0], unit(mean_vector(TEXTS[0])))
    assert_near(vectors(post(served=served, input=TEXTS[0], normalize=False))[0], mean_vector(TEXTS[0]))
    assert_near(vectors(post(input=TEXTS[0], normalize=True))[0], unit(mean_vector(TEXTS[0])))


def test_dimensions_keep_the_first_numbers_and_a_normalised_vector_is_of_length_one_again() -> None:
    assert_near(vectors(post(input=TEXTS[0], dimensions=5))[0], mean_vector(TEXTS[0])[:5])
    cut = vectors(post(served=embed_worker(is_normalized=True), input=TEXTS[0], dimensions=5))[0]
    assert_near(cut, unit(mean_vector(TEXTS[0])[:5]))


def test_a_prompt_of_the_models_folder_goes_before_each_text() -> None:
    served = embed_worker(prompts={"query": "question: ", "passage": "answer: "}, default_prompt="query")
    assert_near(vectors(post(served=served, input="Alice"))[0], mean_vector("question: Alice"))
    assert_near(vectors(post(served=served, input="Alice", prompt_name="passage"))[0], mean_vector("answer: Alice"))
    error = post(served=served, input="Alice", prompt_name="title", status=400)
    assert error["param"] == "prompt_name" and "query, passage" in error["message"]


def test_token_ids_of_a_text_give_the_texts_vector() -> None:
    tokenizer = tiny_tokenizer("wordpiece")
    ids = [tokenizer(text).input_ids for text in TEXTS[:2]]
    for given, texts in ((ids, TEXTS[:2]), (ids[0], TEXTS[:1])):
        answer = post(input=given)
        for vector, text in zip(vectors(answer), texts, strict=True):
            assert_near(vector, mean_vector(text))
        assert answer["usage"]["prompt_tokens"] == sum(map(len, ids[: len(texts)]))
    prompted = embed_worker(prompts={"query": "question: "}, default_prompt="query")
    assert_near(vectors(post(served=prompted, input=ids[0]))[0], mean_vector(TEXTS[0]))
    assert post(served=prompted, input=ids[0], prompt_name="query", status=400)["param"] == "prompt_name"


def test_token_ids_that_are_too_many_are_refused_or_cut() -> None:
    long = tiny_tokenizer("wordpiece")(LONG).input_ids
    assert post(input=long, status=400)["code"] == "context_length_exceeded"
    assert_near(vectors(post(input=long, truncate_prompt_tokens=5))[0], vectors(post(input=long[:5]))[0])
    left = vectors(post(input=long, truncate_prompt_tokens=5, truncation_side="left"))[0]
    assert_near(left, vectors(post(input=long[-5:]))[0])


@pytest.mark.parametrize("ids", [[1, 2, 10**6], [[1, 2], [-1]]])
def test_token_ids_of_another_model_are_refused_with_langchains_switch(ids: list[Any]) -> None:
    error = post(input=ids, status=400)
    assert error["param"] == "input" and "check_embedding_ctx_length=False" in error["message"]


def test_a_text_that_is_too_long_is_refused_in_the_routes_own_words_or_cut() -> None:
    error = post(input=LONG, status=400)
    assert error["code"] == "context_length_exceeded" and error["param"] == "input"
    assert "truncate_prompt_tokens" in error["message"]
    kept = vectors(post(input=LONG, truncate_prompt_tokens=-1))[0]
    assert_near(kept, mean_vector(LONG, truncation=True, max_length=MAX_MODEL_LEN))
    cut = vectors(post(input=LONG, truncate_prompt_tokens=9))[0]
    assert_near(cut, mean_vector(LONG, truncation=True, max_length=9))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": ["a", 3]}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": SIZE + 1}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"input": "a", "prompt_name": "query"}, "prompt_name"),
        ({"input": "a", "add_special_tokens": False}, "add_special_tokens"),
    ],
)
def test_what_cannot_be_honoured_is_a_400_that_names_the_field(body: dict[str, Any], param: str) -> None:
    assert post(status=400, **body)["param"] == param


def test_nulls_are_absent_and_fields_that_mean_nothing_here_are_named_in_the_header() -> None:
    nulls = dict.fromkeys(("model", "dimensions", "encoding_format", "user"))
    response = client_of(worker()).post("/v1/embeddings", json={"input": "Alice", **nulls})
    assert_near(vectors(response.json())[0], mean_vector("Alice"))
    assert "x-ignored-fields" not in response.headers
    response = client_of(worker()).post("/v1/embeddings", json={"input": "Alice", "user": "u1"})
    assert response.headers["x-ignored-fields"] == "user"


@pytest.mark.parametrize("name", ["", "dummy", "tgi"])
def test_names_that_clients_must_send_mean_the_default(name: str) -> None:
    assert post(input="Alice", model=name)["model"] == "vectors"


def test_a_model_of_another_task_is_refused_plainly() -> None:
    classifier = tiny_worker("mood", "bert", "classify")
    error = post(served=classifier, input="Alice", status=404)
    assert error["code"] == "model_not_found" and "embed" in error["message"]
    response = client_of(classifier, worker()).post("/v1/embeddings", json={"input": "Alice", "model": "mood"})
    assert response.status_code == 404 and "Served: vectors." in response.json()["error"]["message"]


def test_info_says_how_vectors_are_made() -> None:
    [model] = client_of(worker()).get("/info").json()["models"]
    assert (model["embedding_size"], model["pooling"], model["is_normalized"]) == (SIZE, "mean", False)


def test_embed_answers_a_list_of_vectors_of_length_one_also_for_one_text() -> None:
    """feature_extraction of Hugging Face's client reads a nested list."""
    [vector] = post("/embed", inputs=TEXTS[0])
    assert_near(vector, unit(mean_vector(TEXTS[0])))
    raw = post("/embed", inputs=TEXTS[:2], normalize=False)
    assert_near(raw, [mean_vector(text) for text in TEXTS[:2]])
    assert len(post("/embed", inputs=TEXTS[0], dimensions=4)[0]) == 4


def test_embed_cuts_at_the_side_that_the_client_names() -> None:
    error = post("/embed", inputs=LONG, status=422)
    assert error["code"] == "context_length_exceeded"
    right = post("/embed", inputs=LONG, truncate=True, normalize=False)
    assert_near(right[0], mean_vector(LONG, truncation=True, max_length=MAX_MODEL_LEN))
    # Of a text whose halves differ, the two sides leave different ones.
    two = "Alice " * 80 + "Bob " * 80
    left, right = (
        post("/embed", inputs=two, truncate=True, truncation_direction=side, normalize=False)[0]
        for side in ("Left", "right")
    )
    assert_near(left, mean_vector("Bob " * (MAX_MODEL_LEN - 2)))
    assert not np.allclose(left, right, atol=1e-2)


def test_similarity_gives_the_cosines_to_the_source_sentence() -> None:
    """sentence_similarity of Hugging Face's client reads a flat list."""
    first, *others = (unit(mean_vector(text)) for text in TEXTS[:4])
    answer = post("/similarity", inputs={"source_sentence": TEXTS[0], "sentences": TEXTS[1:4]})
    assert_near(answer, [float(first @ other) for other in others])
    error = post("/similarity", inputs={"source_sentence": "a", "sentences": []}, status=422)
    assert error["param"] == "inputs.sentences"


def test_too_many_texts_are_refused_with_the_limit() -> None:
    error = post(input=["a"] * 257, status=413)
    assert error["code"] == "batch_too_large" and error["param"] == "input"
