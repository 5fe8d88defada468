"""``/fill-mask`` gives what transformers' pipeline gives, and refuses what that would guess."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from transformers import FillMaskPipeline

from server.serving import mask_filler
from tests.encoder_app import EngineWorker, client_of, tiny_worker
from tests.tiny_encoders import FAMILIES, MASK, special_tokens, tiny_encoder, tiny_tokenizer

TEMPLATES = ["My name is {} and I live in Chicago.", "{} met Bob Smith.", "张三住在{}京。", "Alice{}"]


@cache
def worker(family: str = "bert") -> EngineWorker:
    return tiny_worker("words", family, "fill-mask")


@cache
def oracle(family: str) -> FillMaskPipeline:
    tokenizer = tiny_tokenizer(FAMILIES[family][0])
    return FillMaskPipeline(model=tiny_encoder(family, "fill-mask"), tokenizer=tokenizer, device="cpu")


def masked(template: str, family: str = "bert") -> str:
    return template.replace("{}", special_tokens(FAMILIES[family][0])[MASK])


def post(served: EngineWorker, inputs: Any, *, status: int = 200, **parameters: Any) -> Any:
    response = client_of(served).post("/fill-mask", json={"inputs": inputs, "parameters": parameters})
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


def assert_same(actual: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    scores = [filling.pop("score") for filling in actual]
    wanted = [dict(filling) for filling in expected]
    assert scores == pytest.approx([filling.pop("score") for filling in wanted], abs=1e-5)
    assert actual == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_pipelines_candidates_in_one_batch(family: str) -> None:
    texts = [masked(template, family) for template in TEMPLATES]
    for text, actual in zip(texts, post(worker(family), texts, top_k=7), strict=True):
        assert_same(actual, oracle(family)(text, top_k=7))
    assert_same(post(worker(family), texts[0]), oracle(family)(texts[0]))


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_several_masks_are_answered_one_list_each(family: str) -> None:
    text = masked("My {} is Maria {} and I live at 742 {}.", family)
    answers = post(worker(family), text)
    assert len(answers) == 3
    for actual, wanted in zip(answers, oracle(family)(text), strict=True):
        assert_same(actual, wanted)


def test_a_list_may_mix_texts_of_one_and_of_several_masks() -> None:
    texts = [masked("{} {} {}"), masked("I am {}.")]
    several, one = post(worker(), texts)
    assert [len(mask) for mask in several] == [5, 5, 5] and one[0]["sequence"]


@pytest.mark.parametrize("targets", ["maria", ["maria", "spring", "bob", "bob"], ["##er", "the"]])
def test_targets_are_ranked_with_the_pipelines_scores(targets: str | list[str]) -> None:
    text = masked(TEMPLATES[0])
    actual = post(worker(), text, targets=targets, top_k=2)
    assert_same(actual, oracle("bert")(text, targets=targets, top_k=2))


def test_a_target_may_be_written_as_text_that_is_one_token() -> None:
    assert post(worker(), masked("{}"), targets=["Maria"]) == post(worker(), masked("{}"), targets=["maria"])


@pytest.mark.parametrize("target", ["maria gonzalez", "", "quixotic"])
def test_a_target_that_is_not_one_token_is_refused_and_not_guessed(target: str) -> None:
    error = post(worker(), masked("{}"), targets=["maria", target], status=422)
    assert (error["code"], error["param"]) == ("invalid_value", "parameters.targets")


def test_a_target_outside_of_the_vocabulary_is_refused() -> None:
    assert "vocabulary" in post(worker(), masked("{}"), targets=["\u0416"], status=422)["message"]


@pytest.mark.parametrize(
    ("inputs", "parameters", "param"),
    [
        ("No mask here.", {}, "inputs"),
        ([f"{MASK}", "none"], {}, "inputs"),
        (MASK, {"top_k": 0}, "parameters.top_k"),
        (MASK, {"top_k": 100_000}, "parameters.top_k"),
        (MASK, {"targets": []}, "parameters.targets"),
        (MASK, {"truncation": True}, "parameters.truncation"),
        (f"{MASK} " + "bob " * 80, {}, "inputs"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(inputs: Any, parameters: dict[str, Any], param: str) -> None:
    assert post(worker(), inputs, status=422, **parameters)["param"] == param


def test_the_refusal_of_a_text_without_a_mask_names_the_models_mask() -> None:
    assert "<mask>" in post(worker("roberta"), MASK, status=422)["message"]


def test_more_candidates_than_an_answer_holds_are_refused_before_the_model_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mask_filler, "MAX_CANDIDATES", 20)
    two_masks = masked("{} and {}")
    num_before = len(worker().batch_sizes)
    error = post(worker(), [two_masks, two_masks], status=422, top_k=6)
    assert (error["code"], error["param"]) == ("invalid_value", "inputs")
    assert "4 masks" in error["message"] and "24 candidates" in error["message"]
    assert len(worker().batch_sizes) == num_before
    assert post(worker(), [two_masks, two_masks], top_k=5)
    assert post(worker(), [two_masks, two_masks], top_k=6, targets=["maria", "bob"])
