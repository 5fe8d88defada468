"""``/classify`` gives what transformers' text classification pipeline gives, and refuses what it cannot honour."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from transformers import TextClassificationPipeline

from tests.encoder_app import EngineWorker, client_of, tiny_worker
from tests.tiny_encoders import FAMILIES, TEXTS, tiny_encoder, tiny_tokenizer

LABELS = ("negative", "neutral", "positive")
PAIR = {"text": "Alice Johnson met Bob Smith.", "text_pair": "张三住在北京。"}
LONG = "the old stone bridge in Chicago " * 40


@cache
def worker(family: str = "bert", problem_type: str | None = None, labels: tuple[str, ...] = LABELS) -> EngineWorker:
    return tiny_worker("mood", family, "classify", problem_type=problem_type, labels=labels)


def oracle(family: str = "bert", problem_type: str | None = None, labels: tuple[str, ...] = LABELS) -> Any:
    module = tiny_encoder(family, "classify", problem_type=problem_type, labels=labels)
    return TextClassificationPipeline(model=module, tokenizer=tiny_tokenizer(FAMILIES[family][0]), device="cpu")


def post(served: EngineWorker, inputs: Any, *, status: int = 200, **parameters: Any) -> Any:
    response = client_of(served).post("/classify", json={"inputs": inputs, "parameters": parameters})
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


def assert_same(actual: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [answer["label"] for answer in actual] == [answer["label"] for answer in expected]
    assert [a["score"] for a in actual] == pytest.approx([e["score"] for e in expected], abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_pipelines_labels_for_texts_of_all_scripts_in_one_batch(family: str) -> None:
    answers = post(worker(family), TEXTS)
    expected = [oracle(family)(text, top_k=None) for text in TEXTS]
    for actual, wanted in zip(answers, expected, strict=True):
        assert_same(actual, wanted)
    # Random weights may prefer one label for all, but never with one score.
    assert len({round(answer[0]["score"], 4) for answer in answers}) > 1


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "distilbert"])
def test_a_pair_gives_what_the_pipeline_gives(family: str) -> None:
    [actual] = post(worker(family), PAIR)
    assert_same(actual, oracle(family)(PAIR, top_k=None))


def test_pairs_may_stand_in_a_list_in_both_forms() -> None:
    answers = post(worker(), [PAIR, [PAIR["text"], PAIR["text_pair"]], PAIR["text"], [PAIR["text"]]])
    assert_same(answers[0], answers[1])
    assert_same(answers[2], answers[3])
    assert answers[0] != answers[2]


def test_a_flat_list_of_two_texts_is_a_batch_of_two() -> None:
    answers = post(worker(), ["Alice Johnson", "Bob Smith"])
    assert [len(answer) for answer in answers] == [3, 3]


@pytest.mark.parametrize("problem_type", [None, "regression", "multi_label_classification"])
@pytest.mark.parametrize("labels", [LABELS, ("quality",)])
def test_the_function_fits_the_problem_type(problem_type: str | None, labels: tuple[str, ...]) -> None:
    options = {"problem_type": problem_type, "labels": labels}
    [actual] = post(worker(**options), TEXTS[0])
    assert_same(actual, oracle(**options)(TEXTS[0], top_k=None))


@pytest.mark.parametrize("function", ["sigmoid", "softmax", "none"])
def test_function_to_apply_is_the_pipelines(function: str) -> None:
    [actual] = post(worker(), TEXTS[1], function_to_apply=function)
    assert_same(actual, oracle()(TEXTS[1], top_k=None, function_to_apply=function))


def test_top_k_and_threshold_leave_out_the_least_likely_labels() -> None:
    [every] = post(worker(), TEXTS[0])
    assert every == sorted(every, key=lambda answer: -answer["score"])
    assert post(worker(), TEXTS[0], top_k=2) == [every[:2]]
    assert post(worker(), TEXTS[0], top_k=9) == [every]
    middle = (every[0]["score"] + every[1]["score"]) / 2
    assert post(worker(), TEXTS[0], threshold=middle) == [every[:1]]
    assert post(worker(), TEXTS[0], threshold=1.0) == [[]]


def test_a_text_that_is_too_long_is_refused_with_both_numbers() -> None:
    error = post(worker(), LONG, status=422)
    num_tokens = len(tiny_tokenizer("wordpiece")(LONG)["input_ids"])
    assert error["code"] == "context_length_exceeded"
    assert str(num_tokens) in error["message"] and "64" in error["message"]


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize(
    "pair",
    [(LONG, None), (LONG, "short"), ("short", LONG), (LONG, LONG), ("one two three " * 9, LONG), (LONG, LONG + "!")],
    ids=["single", "long-short", "short-long", "long-long", "medium-long", "odd"],
)
def test_truncate_cuts_where_the_pipeline_cuts(family: str, pair: tuple[str, str | None]) -> None:
    given = {"text": pair[0], "text_pair": pair[1]} if pair[1] else {"text": pair[0]}
    [actual] = post(worker(family), given, truncate=True)
    assert_same(actual, oracle(family)(given, top_k=None, truncation=True))


@pytest.mark.parametrize(
    ("inputs", "parameters", "code", "param"),
    [
        ([], {}, "invalid_value", "inputs"),
        (3, {}, "invalid_value", "inputs"),
        ([["a", "b", "c"]], {}, "invalid_value", "inputs"),
        ({"text": "a", "pair": "b"}, {}, "invalid_value", "inputs"),
        ("a", {"top_k": 0}, "invalid_value", "parameters.top_k"),
        ("a", {"top_k": True}, "invalid_value", "parameters.top_k"),
        ("a", {"function_to_apply": "tanh"}, "invalid_value", "parameters.function_to_apply"),
        ("a", {"threshold": 1.5}, "unsupported_value", "parameters.threshold"),
        ("a", {"truncation": True}, "unknown_parameter", "parameters.truncation"),
        (["a"] * 257, {}, "batch_too_large", "inputs"),
    ],
)
def test_a_wrong_field_is_refused_by_name(inputs: Any, parameters: dict[str, Any], code: str, param: str) -> None:
    error = post(worker(), inputs, status=413 if code == "batch_too_large" else 422, **parameters)
    assert (error["code"], error["param"]) == (code, param)


def test_softmax_over_one_label_is_refused() -> None:
    error = post(worker(labels=("quality",)), "a", status=422, function_to_apply="softmax")
    assert error["param"] == "parameters.function_to_apply"


def test_nulls_mean_absent() -> None:
    body = {"inputs": TEXTS[0], "model": None, "parameters": None}
    every = client_of(worker()).post("/classify", json=body).json()
    body["parameters"] = dict.fromkeys(("top_k", "function_to_apply", "threshold", "truncate"))
    assert client_of(worker()).post("/classify", json=body).json() == every == post(worker(), TEXTS[0])


def test_a_model_is_chosen_by_name_and_the_first_is_the_default() -> None:
    first = tiny_worker("first", "bert", "classify", labels=("a", "b"))
    second = tiny_worker("second", "bert", "classify", labels=("c", "d"))
    client = client_of(first, second)

    def labels(**body: Any) -> set[str]:
        return {answer["label"] for answer in client.post("/classify", json={"inputs": "x", **body}).json()[0]}

    assert labels() == labels(model="first") == {"a", "b"}
    assert labels(model="second") == {"c", "d"}
    assert client.post("/classify", json={"inputs": "x", "model": "third"}).json()["error"]["code"] == "model_not_found"


def test_logits_that_are_not_finite_are_an_error_of_that_request_alone() -> None:
    served = tiny_worker("mood", "bert", "classify", labels=LABELS)
    healthy = post(served, "Alice")
    [token_id] = tiny_tokenizer("wordpiece")("Bob", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        served.engine._forward.module.get_input_embeddings().weight[token_id] = float("nan")
    error = post(served, ["Alice", "Bob"], status=500)
    assert error["code"] == "numerical_error"
    assert post(served, "Alice") == healthy


@pytest.mark.parametrize(("family", "batching"), [("bert", "end to end"), ("deberta-v2", "padded")])
def test_info_says_how_texts_share_a_pass(family: str, batching: str) -> None:
    [model] = client_of(worker(family)).get("/info").json()["models"]
    assert model["batching"] == batching
