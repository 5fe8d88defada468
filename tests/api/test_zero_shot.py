"""``/zero-shot-classification`` gives what transformers' pipeline gives, in the shape of Hugging Face's client."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from transformers import ZeroShotClassificationPipeline

from tests.encoder_app import EngineWorker, client_of, tiny_worker
from tests.tiny_encoders import TEXTS, tiny_encoder, tiny_tokenizer

PATH = "/zero-shot-classification"
NLI = ("contradiction", "neutral", "ENTAILMENT")
ORDERS = (NLI, ("entailment", "neutral", "contradiction"), ("entailment", "not_entailment"))
TOPICS = ["a letter", "a journey", "the weather"]
LONG = "the old stone bridge in Chicago " * 40


@cache
def worker(labels: tuple[str, ...] = NLI, name: str = "nli") -> EngineWorker:
    return tiny_worker(name, "bert", "classify", labels=labels)


@cache
def oracle(labels: tuple[str, ...] = NLI) -> Any:
    module = tiny_encoder("bert", "classify", labels=labels)
    # The pipeline looks the label up among the names of the config.
    return ZeroShotClassificationPipeline(model=module, tokenizer=tiny_tokenizer("wordpiece"), device="cpu")


def post(
    *served: EngineWorker, inputs: Any = TEXTS[0], status: int = 200, model: str | None = None, **given: Any
) -> Any:
    parameters = {"candidate_labels": TOPICS, **given}
    body = {"inputs": inputs, "parameters": parameters, "model": model}
    response = client_of(*(served or (worker(),))).post(PATH, json=body)
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


def assert_same(actual: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    assert [entry["label"] for entry in actual] == expected["labels"]
    assert [entry["score"] for entry in actual] == pytest.approx(expected["scores"], abs=1e-5)
    assert {tuple(entry) for entry in actual} == {("label", "score")}


@pytest.mark.parametrize("is_multi", [False, True])
@pytest.mark.parametrize("labels", ORDERS)
def test_scores_are_the_pipelines_for_every_order_of_the_models_labels(labels: tuple[str, ...], is_multi: bool) -> None:
    expected = oracle(labels)(TEXTS[0], TOPICS, multi_label=is_multi)
    assert_same(post(worker(labels), multi_label=is_multi), expected)


def test_one_label_is_weighed_against_contradiction() -> None:
    expected = oracle()(TEXTS[0], ["a letter"])
    assert 0 < expected["scores"][0] < 1
    assert_same(post(candidate_labels=["a letter"]), expected)


def test_a_template_of_the_clients_own_is_used() -> None:
    template = "This is about {}, is it not?"
    expected = oracle()(TEXTS[0], TOPICS, hypothesis_template=template)
    assert_same(post(hypothesis_template=template), expected)


def test_labels_may_come_in_one_string_with_commas() -> None:
    assert_same(post(candidate_labels=", ".join(TOPICS)), oracle()(TEXTS[0], ", ".join(TOPICS)))


def test_a_list_of_texts_is_answered_with_a_list_of_lists() -> None:
    for actual, text in zip(post(inputs=TEXTS), TEXTS, strict=True):
        assert_same(actual, oracle()(text, TOPICS))


def test_a_label_is_put_into_the_template_as_text_and_nothing_in_it_is_evaluated() -> None:
    labels = ["{0.__class__}", "{}", "%s"]
    assert {entry["label"] for entry in post(candidate_labels=labels)} == set(labels)
    error = post(hypothesis_template="{0.__class__}", status=422)
    assert error["param"] == "parameters.hypothesis_template"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"candidate_labels": []}, "parameters.candidate_labels"),
        ({"candidate_labels": ["a", ""]}, "parameters.candidate_labels"),
        ({"candidate_labels": ""}, "parameters.candidate_labels"),
        ({"candidate_labels": None}, "parameters.candidate_labels"),
        ({"hypothesis_template": "no place"}, "parameters.hypothesis_template"),
        ({"hypothesis_template": "{} and {}"}, "parameters.hypothesis_template"),
        ({"top_k": 1}, "parameters.top_k"),
        ({"inputs": []}, "inputs"),
        ({"inputs": LONG}, "inputs"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes: dict[str, Any], param: str) -> None:
    assert post(status=422, **changes)["param"] == param


def test_a_long_text_is_cut_as_the_pipeline_cuts_it_where_the_client_allows_it() -> None:
    assert_same(post(inputs=LONG, truncate=True), oracle()(LONG, TOPICS))


def test_more_pairs_than_the_limit_are_refused() -> None:
    error = post(inputs=["a", "b"], candidate_labels=[str(i) for i in range(129)], status=413)
    assert error["code"] == "batch_too_large" and "258 inputs" in error["message"]


def test_a_small_body_cannot_ask_for_a_billion_pairs() -> None:
    many = ["a"] * 40_000
    error = post(inputs=many, candidate_labels=many, status=413)
    assert "1600000000 inputs" in error["message"]


def test_the_first_model_of_inference_is_the_default_and_another_is_refused_plainly() -> None:
    mood = worker(("negative", "neutral", "positive"), "mood")
    assert post(mood, worker()) == post(worker())
    for served, name in (((mood, worker()), "mood"), ((mood,), None)):
        error = post(*served, model=name, status=422)
        assert error["param"] == "model" and "entail" in error["message"]
