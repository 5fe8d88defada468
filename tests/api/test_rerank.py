"""``/rerank`` and ``/v1/score``: what a model of text pairs says, for clients of four dialects."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from tests.encoder_app import EngineWorker, client_of, tiny_worker
from tests.tiny_encoders import TEXTS, tiny_encoder, tiny_tokenizer

QUERY = "Who met Bob in Chicago?"
LONG = "the old stone bridge in Chicago " * 40
ONE = ("relevance",)
TWO = ("no", "yes")


@cache
def worker(labels: tuple[str, ...] = ONE, name: str = "ranker") -> EngineWorker:
    return tiny_worker(name, "bert", "classify", labels=labels)


@cache
def logits(labels: tuple[str, ...], query: str, text: str) -> torch.Tensor:
    pair = tiny_tokenizer("wordpiece")(query, text, return_tensors="pt")
    with torch.inference_mode():
        return tiny_encoder("bert", "classify", labels=labels)(**pair).logits[0]


def relevance(query: str, text: str) -> float:
    return float(logits(ONE, query, text)[0].sigmoid())


RANKED = sorted(range(len(TEXTS)), key=lambda i: -relevance(QUERY, TEXTS[i]))


def post(path: str, *served: EngineWorker, status: int = 200, **body: Any) -> Any:
    response = client_of(*(served or (worker(),))).post(path, json=body)
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


def test_texts_are_answered_as_text_embeddings_inference_answers_them() -> None:
    answer = post("/rerank", query=QUERY, texts=TEXTS)
    assert [entry["index"] for entry in answer] == RANKED
    expected = [relevance(QUERY, TEXTS[i]) for i in RANKED]
    assert [entry["score"] for entry in answer] == pytest.approx(expected, abs=1e-5)
    assert {tuple(entry) for entry in answer} == {("index", "score")}
    with_texts = post("/rerank", query=QUERY, texts=TEXTS, return_text=True)
    assert [entry["text"] for entry in with_texts] == [TEXTS[i] for i in RANKED]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_are_answered_as_cohere_and_vllm_answer_them(path: str) -> None:
    answer = post(path, query=QUERY, documents=TEXTS, model="ranker", top_n=3)
    assert answer["id"].startswith("rerank-") and answer["model"] == "ranker"
    num_tokens = sum(len(tiny_tokenizer("wordpiece")(QUERY, text)["input_ids"]) for text in TEXTS)
    assert answer["usage"]["total_tokens"] == num_tokens
    assert [entry["index"] for entry in answer["results"]] == RANKED[:3]
    assert [entry["document"]["text"] for entry in answer["results"]] == [TEXTS[i] for i in RANKED[:3]]
    expected = [relevance(QUERY, TEXTS[i]) for i in RANKED[:3]]
    assert [entry["relevance_score"] for entry in answer["results"]] == pytest.approx(expected, abs=1e-5)


def test_documents_may_be_objects_and_may_be_left_out_of_the_answer() -> None:
    objects = [{"text": TEXTS[0]}, TEXTS[1]]
    answer = post("/v1/rerank", query=QUERY, documents=objects, return_documents=False)
    assert sorted(entry["index"] for entry in answer["results"]) == [0, 1]
    assert all("document" not in entry for entry in answer["results"])


@pytest.mark.parametrize("labels", [ONE, TWO])
def test_a_raw_score_is_the_number_whose_sigmoid_the_score_is(labels: tuple[str, ...]) -> None:
    scores = {e["index"]: e["score"] for e in post("/rerank", worker(labels), query=QUERY, texts=TEXTS)}
    raw = post("/rerank", worker(labels), query=QUERY, texts=TEXTS, raw_scores=True)
    for entry in raw:
        sigmoid = float(torch.tensor(entry["score"]).sigmoid())
        assert sigmoid == pytest.approx(scores[entry["index"]], abs=1e-5)
        assert abs(entry["score"]) > 1e-3


def test_of_two_labels_the_second_is_relevance_unless_one_is_entailment() -> None:
    [entry] = post("/rerank", worker(TWO), query=QUERY, texts=[TEXTS[0]])
    assert entry["score"] == pytest.approx(float(logits(TWO, QUERY, TEXTS[0]).softmax(0)[1]), abs=1e-5)
    labels = ("entailment", "not_entailment")
    [entry] = post("/rerank", worker(labels), query=QUERY, texts=[TEXTS[0]])
    assert entry["score"] == pytest.approx(float(logits(labels, QUERY, TEXTS[0]).softmax(0)[0]), abs=1e-5)
    [model] = client_of(worker(labels)).get("/info").json()["models"]
    assert model["relevance_label"] == "entailment"


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
def test_score_pairs_one_text_with_each_or_two_lists_side_by_side(path: str) -> None:
    answer = post(path, text_1=QUERY, text_2=TEXTS, model="ranker")
    assert answer["object"] == "list" and answer["model"] == "ranker" and answer["id"].startswith("score-")
    assert [entry["index"] for entry in answer["data"]] == list(range(len(TEXTS)))
    assert {entry["object"] for entry in answer["data"]} == {"score"}
    expected = [relevance(QUERY, text) for text in TEXTS]
    assert [entry["score"] for entry in answer["data"]] == pytest.approx(expected, abs=1e-5)
    pairs = post(path, queries=TEXTS[:2], documents=TEXTS[2:4])["data"]
    expected = [relevance(TEXTS[0], TEXTS[2]), relevance(TEXTS[1], TEXTS[3])]
    assert [entry["score"] for entry in pairs] == pytest.approx(expected, abs=1e-5)
    [one] = post(path, text_1=QUERY, text_2=TEXTS[0])["data"]
    assert one["score"] == pytest.approx(relevance(QUERY, TEXTS[0]), abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/rerank", {"query": "a"}, "documents"),
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "texts": ["b"]}, "texts"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": 0}, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "raw_scores": True}, "raw_scores"),
        ("/v1/rerank", {"query": "a", "texts": ["a"], "top_n": 1}, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": [LONG]}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "max_tokens_per_doc": 9}, "max_tokens_per_doc"),
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a"]}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": "b", "documents": "c"}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": LONG}, "text_2"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(path: str, body: dict[str, Any], param: str) -> None:
    assert post(path, status=400, **body)["param"] == param


def test_a_pair_that_is_too_long_is_cut_on_request_in_both_dialects() -> None:
    long_pair = tiny_tokenizer("wordpiece")(QUERY, LONG, truncation=True, max_length=64, return_tensors="pt")
    with torch.inference_mode():
        expected = float(tiny_encoder("bert", "classify", labels=ONE)(**long_pair).logits[0, 0].sigmoid())
    [entry] = post("/rerank", query=QUERY, texts=[LONG], truncate=True)
    assert entry["score"] == pytest.approx(expected, abs=1e-5)
    [entry] = post("/v1/rerank", query=QUERY, documents=[LONG], truncate_prompt_tokens=-1)["results"]
    assert entry["relevance_score"] == pytest.approx(expected, abs=1e-5)


def test_the_first_model_that_can_judge_pairs_is_the_default_and_another_is_refused_plainly() -> None:
    """Text Embeddings Inference's clients cannot name one."""
    mood = worker(("negative", "neutral", "positive"), "mood")
    assert post("/v1/rerank", mood, worker(), query=QUERY, documents=["a"])["model"] == "ranker"
    error = post("/v1/rerank", mood, worker(), query=QUERY, documents=["a"], model="mood", status=400)
    assert error["param"] == "model" and "3 labels" in error["message"]
    error = post("/rerank", mood, query=QUERY, texts=["a"], status=422)
    assert error["param"] == "model"
    tagger = tiny_worker("names", "bert", "ner")
    assert post("/rerank", tagger, query=QUERY, texts=["a"], status=404)["code"] == "model_not_found"
