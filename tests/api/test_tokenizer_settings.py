"""What a tokenizer's files say decides, as in transformers: which inputs a model gets, and where a text is cut."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, TextClassificationPipeline, ZeroShotClassificationPipeline

from tests.api.embed_app import base_of, embed_worker, unit
from tests.encoder_app import EngineWorker, client_of, ready_of
from tests.tiny_encoders import MAX_MODEL_LEN, tiny_encoder, tiny_tokenizer

PAIR = ("Alice Johnson met Bob Smith.", "The old stone bridge in Chicago sings.")
LONG = "the old stone bridge in Chicago " * 20 + "Maria Gonzalez lives in Springfield."
NLI = ("contradiction", "entailment")
ONE = ("relevance",)


def changed(**settings: Any) -> PreTrainedTokenizerFast:
    """The tiny tokenizer, whose template gives a pair's second text the type 1, with other settings."""
    tokenizer = copy.deepcopy(tiny_tokenizer("wordpiece"))
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    return tokenizer


@cache
def typed(gives_types: bool) -> PreTrainedTokenizerFast:
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * gives_types
    return changed(model_input_names=names)


def served(tokenizer: PreTrainedTokenizerFast, labels: tuple[str, ...]) -> EngineWorker:
    return EngineWorker("tiny", "classify", tiny_encoder("bert", "classify", labels=labels), tokenizer)


def post(worker: EngineWorker, path: str, **body: Any) -> Any:
    response = client_of(worker).post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def pair_logits(tokenizer: PreTrainedTokenizerFast, labels: tuple[str, ...]) -> torch.Tensor:
    with torch.inference_mode():
        inputs = tokenizer(*PAIR, return_tensors="pt")
        return tiny_encoder("bert", "classify", labels=labels)(**inputs).logits[0]


def test_the_two_kinds_of_tokenizers_really_differ() -> None:
    assert not torch.allclose(*(pair_logits(typed(gives_types), NLI) for gives_types in (True, False)), atol=1e-2)


@pytest.mark.parametrize("gives_types", [True, False])
def test_a_pair_has_the_token_types_that_the_tokenizer_gives(gives_types: bool) -> None:
    [answer] = post(served(typed(gives_types), NLI), "/classify", inputs=[{"text": PAIR[0], "text_pair": PAIR[1]}])
    expected = pair_logits(typed(gives_types), NLI).softmax(-1)
    assert {e["label"]: e["score"] for e in answer} == pytest.approx(
        dict(zip(NLI, expected.tolist(), strict=True)), abs=1e-5
    )


@pytest.mark.parametrize("gives_types", [True, False])
def test_a_reranker_has_the_token_types_that_the_tokenizer_gives(gives_types: bool) -> None:
    expected = float(pair_logits(typed(gives_types), ONE)[0].sigmoid())
    worker = served(typed(gives_types), ONE)
    [ranked] = post(worker, "/rerank", query=PAIR[0], texts=[PAIR[1]])
    [scored] = post(worker, "/v1/score", text_1=PAIR[0], text_2=PAIR[1])["data"]
    assert ranked["score"] == pytest.approx(expected, abs=1e-5)
    assert scored["score"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("gives_types", [True, False])
def test_hypotheses_have_the_token_types_that_the_tokenizer_gives(gives_types: bool) -> None:
    module = tiny_encoder("bert", "classify", labels=NLI)
    pipeline: Any = ZeroShotClassificationPipeline(model=module, tokenizer=typed(gives_types), device="cpu")
    labels = ["a letter", "a journey"]
    expected = pipeline(PAIR[0], labels)
    answer = post(
        served(typed(gives_types), NLI),
        "/zero-shot-classification",
        inputs=PAIR[0],
        parameters={"candidate_labels": labels},
    )
    assert [e["score"] for e in answer] == pytest.approx(expected["scores"], abs=1e-5)


def truncated(side: str, text: str, **tokenizing: Any) -> dict[str, float]:
    module = tiny_encoder("bert", "classify")
    pipeline: Any = TextClassificationPipeline(model=module, tokenizer=changed(truncation_side=side), device="cpu")
    return {e["label"]: e["score"] for e in pipeline(text, truncation=True, top_k=None, **tokenizing)}


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_is_cut_on_the_side_that_the_tokenizer_says(side: str) -> None:
    worker = EngineWorker("tiny", "classify", tiny_encoder("bert", "classify"), changed(truncation_side=side))
    [answer] = post(worker, "/classify", inputs=[LONG], parameters={"truncate": True})
    assert {e["label"]: e["score"] for e in answer} == pytest.approx(truncated(side, LONG), abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/classify", {"input": LONG, "truncate_prompt_tokens": -1}),
        ("/predict", {"inputs": LONG, "truncate": True}),
    ],
)
def test_every_dialect_cuts_on_the_side_that_the_tokenizer_says(path: str, body: dict[str, Any]) -> None:
    worker = EngineWorker("tiny", "classify", tiny_encoder("bert", "classify"), changed(truncation_side="left"))
    assert max(scores_of(post(worker, path, **body))) == pytest.approx(max(truncated("left", LONG).values()), abs=1e-5)


def scores_of(answer: Any) -> list[float]:
    if isinstance(answer, dict):
        return list(answer["data"][0]["probs"])
    return [entry["score"] for entry in answer]


def test_a_side_that_the_client_names_wins() -> None:
    worker = EngineWorker("tiny", "classify", tiny_encoder("bert", "classify"), changed(truncation_side="left"))
    answer = post(worker, "/predict", inputs=LONG, truncate=True, truncation_direction="Right")
    assert {e["label"]: e["score"] for e in answer} == pytest.approx(truncated("right", LONG), abs=1e-5)


def test_a_vector_is_made_of_the_end_that_the_tokenizer_keeps() -> None:
    tokenizer = changed(truncation_side="left")
    worker = embed_worker()
    ready = ready_of("embed", base_of(), tokenizer)
    worker.ready = msgspec.structs.replace(ready, embedding=worker.ready.embedding)
    [vector] = post(worker, "/embed", inputs=[LONG], truncate=True)
    inputs = tokenizer(LONG, truncation=True, max_length=MAX_MODEL_LEN, return_tensors="pt")
    with torch.inference_mode():
        expected = base_of()(**inputs).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(vector, unit(expected), atol=1e-4)
