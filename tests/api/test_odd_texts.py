"""Texts of no words, of unknown signs and of all scripts: every route answers as transformers does, or refuses."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from transformers import FillMaskPipeline, TextClassificationPipeline, TokenClassificationPipeline

from tests.api.embed_app import embed_worker, mean_vector, unit
from tests.encoder_app import client_of, tiny_worker
from tests.tiny_encoders import FAMILIES, MASK, special_tokens, tiny_encoder, tiny_tokenizer

KINDS = ("bert", "roberta", "xlm-roberta")
TEXTS = {
    "empty": "",
    "space": " ",
    "lines": "\r\n\t",
    "letter": "x",
    "unknown": "\u2603",
    "only unknown": "\u2603\u2603 \u2603",
    "emoji": "\U0001f600",
    "joined emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "marks of direction": "\u200f\u200e",
    "right to left": "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "combining": "e\u0301\u0301\u0301",
    "zero": "a\x00b",
    "soft hyphen": "\u00ad",
    "byte order mark": "\ufeff",
    "grows in lower case": "\u0130",
    "shrinks in NFKC": "\ufb01 \uff21",
    "last code point": "\U0010ffff",
}


@cache
def client(family: str) -> TestClient:
    tasks: tuple[Any, ...] = ("classify", "ner", "fill-mask")
    return client_of(*(tiny_worker(task, family, task) for task in tasks), embed_worker(family=family))


def pipeline(kind: Any, family: str, task: Any, **options: Any) -> Any:
    tokenizer = tiny_tokenizer(FAMILIES[family][0])
    return kind(model=tiny_encoder(family, task), tokenizer=tokenizer, device="cpu", **options)


def post(family: str, path: str, text: str) -> Any:
    response = client(family).post(path, json={"inputs": text})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("family", KINDS)
class TestOddText:
    def test_has_the_pipelines_labels(self, family: str, text: str) -> None:
        expected = pipeline(TextClassificationPipeline, family, "classify")(text, top_k=None)
        [answer] = post(family, "/classify", text)
        assert [entry["label"] for entry in answer] == [entry["label"] for entry in expected]
        assert [e["score"] for e in answer] == pytest.approx([e["score"] for e in expected], abs=1e-5)

    def test_has_the_pipelines_entities(self, family: str, text: str) -> None:
        tagger = pipeline(TokenClassificationPipeline, family, "ner", aggregation_strategy="simple")
        response = client(family).post("/ner", json={"inputs": text, "parameters": {"aggregation_strategy": "simple"}})
        places = [(e["entity_group"], e["start"], e["end"], e["word"]) for e in response.json()]
        assert places == [(e["entity_group"], e["start"], e["end"], e["word"]) for e in tagger(text)]

    def test_has_the_pipelines_fillings(self, family: str, text: str) -> None:
        masked = text + special_tokens(FAMILIES[family][0])[MASK]
        expected = pipeline(FillMaskPipeline, family, "fill-mask")(masked)
        answer = post(family, "/fill-mask", masked)
        assert [(e["token"], e["sequence"]) for e in answer] == [(e["token"], e["sequence"]) for e in expected]

    def test_has_transformers_vector(self, family: str, text: str) -> None:
        [vector] = post(family, "/embed", text)
        np.testing.assert_allclose(vector, unit(mean_vector(text, family)), atol=1e-4)
