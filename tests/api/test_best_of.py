"""The best of several samples: the likeliest, or the one that a served classifier likes best."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.protocol import Generate
from server.serving.record import RequestRecord
from tests.api.scripted import MODEL, TOKENIZER, Script, ScriptedWorker, Step, ready
from tests.api.several import TEXTS, client_of, command_of, post, says_each
from tests.encoder_app import EngineWorker, tiny_worker
from tests.encoder_app import client_of as client_of_workers

LABELS = ("negative", "neutral", "positive")


def test_the_best_of_several_has_the_greatest_mean_log_probability() -> None:
    # The second is the longest and has by far the least sum.
    texts = ["The mill", "The mill runs " * 5, "The river", "mill"]
    client = client_of(says_each(*texts, logprobs=[-0.9, -0.2, math.nan, -0.5]))
    assert post(client, best_of=4, do_sample=True) == {"generated_text": texts[1]}
    assert command_of(client).params.logprobs
    assert post(client, best_of=4, n=2, do_sample=True)["generated_texts"] == [texts[1], texts[3]]
    details = post(client, best_of=4, n=2, do_sample=True, details=True)["details"]
    ranked = [details, *details["best_of_sequences"]]
    assert [sequence["sequence"] for sequence in ranked] == [1, 3, 0, 2]
    assert [sequence["score"] for sequence in ranked] == [pytest.approx(-0.2), -0.5, pytest.approx(-0.9), None]


def test_a_best_of_one_is_no_wish() -> None:
    assert post(client_of(says_each(*TEXTS)), best_of=1) == {"generated_text": TEXTS[0]}


@cache
def moods() -> EngineWorker:
    return tiny_worker("mood", "bert", "classify", labels=LABELS)


def ranked_client(script: Script, *, first: str = "generator") -> TestClient:
    workers: list[Any] = [ScriptedWorker(script, ready()), moods()]
    return client_of_workers(*(workers if first == "generator" else reversed(workers)))


@pytest.mark.parametrize("first", ["generator", "classifier"])
@pytest.mark.parametrize("label", LABELS)
def test_the_best_of_several_is_the_one_that_a_served_classifier_likes_best(label: str, first: str) -> None:
    texts = ["Alice Johnson met Bob Smith.", "张三住在北京。", "the old stone bridge", "x" * 3000]
    client = ranked_client(says_each(*texts), first=first)
    body = {"inputs": texts, "model": "mood", "parameters": {"truncate": True}}
    scores = [
        next(pair["score"] for pair in scores if pair["label"] == label)
        for scores in client.post("/classify", json=body).json()
    ]
    rank_by = {"model": "mood", "label": label}
    answer = post(client, best_of=4, do_sample=True, rank_by=rank_by, max_new_tokens=100, details=True)
    assert answer["generated_text"] == texts[scores.index(max(scores))]
    ranked = [answer["details"], *answer["details"]["best_of_sequences"]]
    assert [sequence["score"] for sequence in ranked] == pytest.approx(sorted(scores, reverse=True), abs=1e-6)


def test_samples_are_ranked_though_the_classifiers_queue_is_full_or_draining() -> None:
    """What has been computed is not lost to a limit on new work."""
    client = ranked_client(says_each("The mill", "The river"))
    classifier = client.app.front.registry.services.classifiers["mood"]  # type: ignore[attr-defined]
    rank_by = {"model": "mood", "label": "neutral"}
    with classifier._admission.admit(classifier._admission.max_tokens):
        classifier._admission.draining = True
        answer = post(client, best_of=2, do_sample=True, rank_by=rank_by)
        assert classifier._admission.num_requests == 1
    assert answer["generated_text"] in ("The mill", "The river")


def test_an_empty_sample_is_never_the_best_and_costs_no_error() -> None:
    client = ranked_client(says_each("", "mill", ""))
    answer = post(client, best_of=3, do_sample=True, rank_by={"model": "mood", "label": "neutral"})
    assert answer["generated_text"] == "mill"
    only_empty = ranked_client(says_each("", ""))
    answer = post(only_empty, best_of=2, do_sample=True, rank_by={"model": "mood", "label": "neutral"})
    assert answer["generated_text"] == ""


@pytest.mark.parametrize(
    ("rank_by", "words"),
    [
        ({"model": "moood", "label": "neutral"}, ["moood", "served classifiers: mood"]),
        ({"model": "tiny", "label": "neutral"}, ["tiny", "served classifiers: mood"]),
        ({"model": "mood", "label": "happy"}, ["happy", "negative, neutral, positive"]),
    ],
)
def test_an_unknown_classifier_or_label_is_refused_before_anything_is_computed(
    rank_by: dict[str, str], words: list[str]
) -> None:
    def script(command: Generate) -> Iterator[Step]:
        raise AssertionError("computed")

    error = post(ranked_client(script), status=422, best_of=2, do_sample=True, rank_by=rank_by)
    assert error["param"] == "parameters.rank_by"
    assert all(word in error["message"] for word in words)


def test_samples_of_one_text_have_one_score_and_keep_their_order() -> None:
    client = ranked_client(says_each("The mill", "The river", "The mill"))
    rank_by = {"model": "mood", "label": "neutral"}
    details = post(client, best_of=3, do_sample=True, rank_by=rank_by, details=True)["details"]
    scores = {sequence["sequence"]: sequence["score"] for sequence in [details, *details["best_of_sequences"]]}
    assert scores[0] == scores[2] != scores[1] and [*scores].index(0) < [*scores].index(2)


def test_the_record_counts_the_tokens_of_all_outputs_and_not_what_the_classifier_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records: list[RequestRecord] = []
    monkeypatch.setattr(RequestRecord, "report", lambda self: records.append(self))  # noqa: PLW0108
    client = ranked_client(says_each("The mill", "The river runs"))
    post(client, best_of=2, do_sample=True, rank_by={"model": "mood", "label": "neutral"})
    assert records[0].prompt_tokens == len(TOKENIZER.encode("Hello").ids)
    assert records[0].output_tokens == sum(len(TOKENIZER.encode(t).ids) + 1 for t in ("The mill", "The river runs"))
    assert records[0].model == MODEL.name
