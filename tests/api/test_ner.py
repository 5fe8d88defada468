"""``/ner`` gives what transformers' token classification pipeline gives, and whole documents beyond it."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from transformers import TokenClassificationPipeline

from server.text.entities import PIPELINE_STRATEGIES
from tests.encoder_app import EngineWorker, client_of, tiny_worker
from tests.tiny_encoders import FAMILIES, TAGS, TEXTS, tiny_encoder, tiny_tokenizer

STRATEGIES = ("joined", *PIPELINE_STRATEGIES)
DOCUMENT = " ".join(TEXTS[:6] * 4)


@cache
def worker(family: str = "bert") -> EngineWorker:
    return tiny_worker("names", family, "ner")


@cache
def oracle(family: str) -> TokenClassificationPipeline:
    tokenizer = tiny_tokenizer(FAMILIES[family][0])
    return TokenClassificationPipeline(model=tiny_encoder(family, "ner"), tokenizer=tokenizer, device="cpu")


def pipeline_entities(family: str, text: str, **options: Any) -> Any:
    with warnings.catch_warnings():
        # The pipeline warns that byte-level tokenizers do not mark the pieces inside words.
        warnings.simplefilter("ignore", UserWarning)
        return oracle(family)(text, **options)


def post(
    served: EngineWorker,
    inputs: Any,
    *,
    status: int = 200,
    settings: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> Any:
    response = client_of(served, **(settings or {})).post("/ner", json={"inputs": inputs, "parameters": parameters})
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


def assert_same(actual: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    scores = [entity.pop("score") for entity in actual]
    wanted = [dict(entity) for entity in expected]
    assert scores == pytest.approx([float(entity.pop("score")) for entity in wanted], abs=1e-5)
    assert actual == wanted


@pytest.mark.parametrize(
    ("family", "strategy"),
    [
        *itertools.product(["bert", "roberta", "xlm-roberta"], PIPELINE_STRATEGIES),
        *((family, "simple") for family in ("distilbert", "deberta-v2", "modernbert")),
    ],
)
def test_every_strategy_of_the_pipeline_gives_its_entities(family: str, strategy: str) -> None:
    answers = post(worker(family), TEXTS, aggregation_strategy=strategy)
    assert sum(map(len, answers)) > 20
    for text, actual in zip(TEXTS, answers, strict=True):
        assert_same(actual, pipeline_entities(family, text, aggregation_strategy=strategy))


@pytest.mark.parametrize("strategy", PIPELINE_STRATEGIES)
def test_ignore_labels_are_the_pipelines(strategy: str) -> None:
    for ignored in ([], ["O", "PER"], ["B-PER", "LOC"]):
        options = {"aggregation_strategy": strategy, "ignore_labels": ignored}
        assert_same(post(worker(), TEXTS[0], **options), pipeline_entities("bert", TEXTS[0], **options))


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_joined_entities_are_slices_of_the_text_that_do_not_overlap(family: str) -> None:
    for text, entities in zip(TEXTS, post(worker(family), TEXTS), strict=True):
        end = 0
        for entity in entities:
            assert entity["start"] >= end
            end = entity["end"]
            assert entity["word"] == text[entity["start"] : end] == entity["word"].strip()
            assert 0 < entity["score"] <= 1
            assert set(entity) == {"entity_group", "score", "word", "start", "end"}


def test_joined_without_ignored_labels_covers_every_visible_character() -> None:
    [entities] = [post(worker("roberta"), TEXTS[5], ignore_labels=[])]
    covered = {i for entity in entities for i in range(entity["start"], entity["end"])}
    assert all(i in covered or character.isspace() for i, character in enumerate(TEXTS[5]))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_long_document_comes_back_as_one_ordered_list_to_its_very_end(strategy: str) -> None:
    entities = post(worker(), DOCUMENT, aggregation_strategy=strategy, ignore_labels=[])
    starts = [entity["start"] for entity in entities]
    assert starts == sorted(starts) and entities[-1]["end"] >= len(DOCUMENT) - 1
    covered = {i for entity in entities for i in range(entity["start"], entity["end"])}
    hidden = [c for i, c in enumerate(DOCUMENT) if i not in covered and not c.isspace()]
    # The tokenizer itself drops emoji joiners; nothing else is lost.
    assert set(hidden) <= {"\u200d", "\ufe0f"}


def test_a_text_of_exactly_the_window_equals_the_pipeline_and_one_token_more_is_still_answered() -> None:
    fits = " ".join(["bob"] * 62)
    assert_same(post(worker(), fits, aggregation_strategy="none"), pipeline_entities("bert", fits))
    longer = post(worker(), fits + " bob", aggregation_strategy="none", ignore_labels=[])
    assert [entity["index"] for entity in longer] == list(range(1, 64))


def test_a_string_is_answered_flat_and_a_list_nested() -> None:
    flat = post(worker(), TEXTS[0])
    assert post(worker(), [TEXTS[0]]) == [flat]
    assert post(worker(), [TEXTS[7], ""])[1] == []


def test_threshold_leaves_out_unsure_entities() -> None:
    every = post(worker(), TEXTS[0])
    middle = sorted(entity["score"] for entity in every)[len(every) // 2]
    assert post(worker(), TEXTS[0], threshold=middle) == [e for e in every if e["score"] >= middle]
    assert post(worker(), TEXTS[0], threshold=1) == []


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"aggregation_strategy": "last"}, "parameters.aggregation_strategy"),
        ({"ignore_labels": ["MISC"]}, "parameters.ignore_labels"),
        ({"ignore_labels": "O"}, "parameters.ignore_labels"),
        ({"stride": -1}, "parameters.stride"),
        ({"stride": 62}, "parameters.stride"),
        ({"threshold": 2}, "parameters.threshold"),
        ({"top_k": 1}, "parameters.top_k"),
    ],
)
def test_a_wrong_field_is_refused_by_name(parameters: dict[str, Any], param: str) -> None:
    assert post(worker(), TEXTS[0], status=422, **parameters)["param"] == param


def test_a_label_of_the_model_may_be_ignored_with_or_without_its_prefix() -> None:
    every = post(worker(), TEXTS[0])
    without = post(worker(), TEXTS[0], ignore_labels=["O", "PER"])
    assert without == [entity for entity in every if entity["entity_group"] != "PER"]
    assert post(worker(), TEXTS[0], ignore_labels=["O", "B-PER"]) == without
    assert post(worker(), TEXTS[0], ignore_labels=list(TAGS)) == []


@pytest.mark.parametrize("stride", [0, 1, 31, 61])
def test_every_stride_below_the_window_is_honoured(stride: int) -> None:
    entities = post(worker(), DOCUMENT, aggregation_strategy="none", ignore_labels=[], stride=stride)
    assert [e["index"] for e in entities] == list(range(1, len(entities) + 1))


def test_work_beyond_the_queues_tokens_is_refused_before_windows_are_made_of_it() -> None:
    served = worker()
    num_before = len(served.batch_sizes)
    settings = {"max_queued_tokens": 2000}
    assert post(served, DOCUMENT, settings=settings, stride=0)
    for inputs in (DOCUMENT, [DOCUMENT] * 2):
        error = post(served, inputs, status=422, settings=settings, stride=61)
        assert (error["code"], error["param"]) == ("context_length_exceeded", "inputs")
        assert "at most 2000" in error["message"] and "stride" in error["message"]
    assert post(served, [DOCUMENT] * 10, status=422, settings=settings, stride=0)
    assert len(served.batch_sizes) - num_before < 20


@pytest.mark.parametrize(
    "labels", [("o", "B-PER", "M-PER", "E-PER", "S-LOC"), ("0", "PER", "LOC"), ("None", "PER-B", "PER-I", "LOC-B")]
)
def test_a_tagger_of_another_scheme_answers_with_types_and_leaves_its_own_o_out(labels: tuple[str, ...]) -> None:
    module = tiny_encoder("bert", "ner", labels=labels)
    served = EngineWorker("names", "ner", module, tiny_tokenizer("wordpiece"))
    texts = [*TEXTS, DOCUMENT]
    found = {entity["entity_group"] for entities in post(served, texts) for entity in entities}
    assert found == {"PER", "LOC"}
    found = {entity["entity_group"] for entities in post(served, texts, ignore_labels=[]) for entity in entities}
    assert found == {"PER", "LOC", labels[0]}
