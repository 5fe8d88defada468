"""Texts that are certainly longer than an encoder takes are refused before they are read."""

from __future__ import annotations

from typing import Any

import pytest

from server.text.tokenizer import Tokenizer
from tests.api.embed_app import embed_worker
from tests.encoder_app import EngineWorker, client_of, tiny_worker

PROSE = "the old stone bridge " * 20_000


@pytest.fixture(autouse=True)
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tokenizer may be asked."""

    def encode(*_: Any) -> None:
        raise AssertionError("the text was read")

    monkeypatch.setattr(Tokenizer, "encode", encode)


def refusal(worker: EngineWorker, path: str, body: dict[str, Any], **settings: Any) -> str:
    reply = client_of(worker, **settings).post(path, json=body)
    assert reply.status_code in (400, 413, 422), reply.text
    return str(reply.json())


def test_of_a_classifier_and_its_pairs() -> None:
    worker = tiny_worker("mood", "bert", "classify", labels=("no", "yes"))
    assert "at least" in refusal(worker, "/classify", {"inputs": PROSE})
    assert "at least" in refusal(worker, "/classify", {"inputs": {"text": "a", "text_pair": PROSE}})


def test_of_a_model_for_embeddings() -> None:
    assert "at least" in refusal(embed_worker(), "/embed", {"inputs": PROSE})
    assert "at least" in refusal(embed_worker(), "/v1/embeddings", {"input": PROSE, "model": "vectors"})


def test_of_a_mask_filler() -> None:
    worker = tiny_worker("fill", "bert", "fill-mask")
    assert "at least" in refusal(worker, "/fill-mask", {"inputs": PROSE + "[MASK]"})


def test_of_a_tagger_when_all_windows_together_are_too_many() -> None:
    worker = tiny_worker("names", "bert", "ner")
    assert "at least" in refusal(worker, "/ner", {"inputs": [PROSE, PROSE]}, max_queued_tokens=100_000)
