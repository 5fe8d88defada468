"""vLLM's ``/v1/classify`` and Text Embeddings Inference's ``/predict`` say what ``/classify`` says, in their shapes."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from tests.encoder_app import EngineWorker, client_of, tiny_worker
from tests.tiny_encoders import TEXTS, tiny_encoder, tiny_tokenizer

LABELS = ("negative", "neutral", "positive")
LONG = "the old stone bridge in Chicago " * 40


@cache
def worker(labels: tuple[str, ...] = LABELS, problem_type: str | None = None) -> EngineWorker:
    return tiny_worker("mood", "bert", "classify", labels=labels, problem_type=problem_type)


@cache
def module() -> PreTrainedModel:
    return tiny_encoder("bert", "classify", labels=LABELS)


def logits(*text: str) -> np.ndarray:
    with torch.inference_mode():
        return module()(**tiny_tokenizer("wordpiece")(*text, return_tensors="pt")).logits[0].numpy()


def probabilities(*text: str) -> np.ndarray:
    return torch.tensor(logits(*text)).softmax(0).numpy()


def post(path: str, served: EngineWorker | None = None, *, status: int = 200, **body: Any) -> Any:
    response = client_of(served or worker()).post(path, json=body)
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


def scores(labels: list[dict[str, Any]]) -> list[float]:
    assert labels == sorted(labels, key=lambda label: -label["score"])
    by_name = {label["label"]: label["score"] for label in labels}
    return [by_name[name] for name in LABELS]


@pytest.mark.parametrize("path", ["/v1/classify", "/classify"])
def test_input_is_answered_as_vllm_answers_it(path: str) -> None:
    answer = post(path, input=TEXTS, model="mood")
    assert answer["object"] == "list" and answer["model"] == "mood" and answer["id"].startswith("classify-")
    num_tokens = sum(len(tiny_tokenizer("wordpiece")(text)["input_ids"]) for text in TEXTS)
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    for index, (entry, text) in enumerate(zip(answer["data"], TEXTS, strict=True)):
        expected = probabilities(text)
        assert entry["index"] == index and entry["num_classes"] == 3
        assert entry["probs"] == pytest.approx(expected.tolist(), abs=1e-5)
        assert entry["label"] == LABELS[int(expected.argmax())]


@pytest.mark.parametrize("path", ["/v1/classify", "/classify"])
def test_without_activation_the_numbers_are_logits(path: str) -> None:
    [entry] = post(path, input=TEXTS[0], use_activation=False)["data"]
    assert entry["probs"] == pytest.approx(logits(TEXTS[0]).tolist(), abs=1e-4)


def test_inputs_still_have_the_answer_of_hugging_faces_client() -> None:
    [labels] = post("/classify", inputs=TEXTS[0])
    assert scores(labels) == pytest.approx(probabilities(TEXTS[0]).tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "a", "inputs": "b"}, "input"),
        ({"input": "a", "parameters": {"top_k": 1}}, "input"),
        ({"inputs": "a", "use_activation": True}, "use_activation"),
        ({"input": []}, "input"),
        ({"input": "a", "user": "u"}, "user"),
        ({"input": LONG}, "input"),
    ],
)
def test_classify_does_not_mix_the_two_dialects(body: dict[str, Any], param: str) -> None:
    assert post("/classify", status=422, **body)["param"] == param


def test_on_v1_a_wrong_body_is_a_400_and_an_unknown_field_is_named_in_the_header() -> None:
    assert post("/v1/classify", input=3, status=400)["param"] == "input"
    assert post("/v1/classify", input=LONG, status=400)["code"] == "context_length_exceeded"
    response = client_of(worker()).post("/v1/classify", json={"input": "a", "user": "u"})
    assert response.status_code == 200 and response.headers["x-ignored-fields"] == "user"
    [cut] = post("/v1/classify", input=LONG, truncate_prompt_tokens=-1)["data"]
    tokens = tiny_tokenizer("wordpiece")(LONG, truncation=True, max_length=64, return_tensors="pt")
    with torch.inference_mode():
        expected = module()(**tokens).logits[0].softmax(0)
    assert cut["probs"] == pytest.approx(expected.tolist(), abs=1e-5)


def test_predict_answers_a_flat_list_for_one_text_and_lists_for_a_batch() -> None:
    assert scores(post("/predict", inputs=TEXTS[0])) == pytest.approx(probabilities(TEXTS[0]).tolist(), abs=1e-5)
    for labels, text in zip(post("/predict", inputs=[[text] for text in TEXTS]), TEXTS, strict=True):
        assert scores(labels) == pytest.approx(probabilities(text).tolist(), abs=1e-5)


def test_predict_reads_a_list_of_two_texts_as_one_pair() -> None:
    labels = post("/predict", inputs=TEXTS[:2])
    assert scores(labels) == pytest.approx(probabilities(*TEXTS[:2]).tolist(), abs=1e-5)
    [labels] = post("/predict", inputs=[TEXTS[:2]])
    assert scores(labels) == pytest.approx(probabilities(*TEXTS[:2]).tolist(), abs=1e-5)


def test_predict_gives_logits_on_request_and_refuses_what_is_too_long() -> None:
    raw = post("/predict", inputs=TEXTS[0], raw_scores=True)
    assert scores(raw) == pytest.approx(logits(TEXTS[0]).tolist(), abs=1e-4)
    assert post("/predict", inputs=LONG, status=422)["code"] == "context_length_exceeded"


@pytest.mark.parametrize("side", ["Left", "Right"])
@pytest.mark.parametrize(
    "texts", [("Alice " * 50 + "Bob " * 50,), ("Alice " * 30 + "Bob " * 30, "Carol met Hans " * 20)]
)
def test_predict_cuts_at_the_side_that_the_client_names_as_transformers_does(texts: tuple[str, ...], side: str) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer("wordpiece"))
    tokenizer.truncation_side = side.lower()
    with torch.inference_mode():
        expected = (
            module()(**tokenizer(*texts, truncation=True, max_length=64, return_tensors="pt")).logits[0].softmax(0)
        )
    answer = post("/predict", inputs=[list(texts)], truncate=True, truncation_direction=side)
    assert scores(answer[0]) == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"inputs": ["a", "b", "c"]}, "inputs"),
        ({"inputs": [["a", "b", "c"]]}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": ["a", ["b"]]}, "inputs"),
        ({"inputs": "a", "top_k": 1}, "top_k"),
        ({"inputs": "a", "truncation_direction": "Up"}, "truncation_direction"),
    ],
)
def test_predict_refuses_what_it_cannot_honour_by_name(body: dict[str, Any], param: str) -> None:
    assert post("/predict", status=422, **body)["param"] == param


def test_a_multi_label_models_scores_are_of_each_label_alone() -> None:
    """Text Embeddings Inference makes a softmax of them whatever the model says."""
    served = worker(problem_type="multi_label_classification")
    expected = torch.tensor(logits(TEXTS[0])).sigmoid().tolist()
    assert scores(post("/predict", served, inputs=TEXTS[0])) == pytest.approx(expected, abs=1e-5)
    [entry] = post("/v1/classify", served, input=TEXTS[0])["data"]
    assert entry["probs"] == pytest.approx(expected, abs=1e-5)
