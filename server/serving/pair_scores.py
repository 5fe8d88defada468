"""What a classifier of text pairs says of relevance and of hypotheses: reranking and zero-shot classification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.errors import InvalidParameter, InvalidRequest
from server.serving.classifier import LabelScore, ServedClassifier, TextPair, apply_function
from server.serving.record import RequestRecord
from server.serving.registry import Registry
from server.text.entities import softmax
from server.text.label_roles import contradiction_place, entailment_place, relevance_place
from server.text.truncation import Truncation

DEFAULT_HYPOTHESIS = "This example is {}."


def find_reranker(registry: Registry, name: str | None) -> ServedClassifier:
    """The named classifier, or the first that can judge how well a text answers a query."""
    return _find(registry, name, relevance_place, "has {} labels. A model for pairs of texts has one or two")


def find_nli(registry: Registry, name: str | None) -> ServedClassifier:
    """The named classifier, or the first that was trained for natural language inference."""
    return _find(
        registry,
        name,
        entailment_place,
        "has no label that begins with entail. A model of natural language inference has one",
    )


def _find(
    registry: Registry, name: str | None, place: Callable[[Sequence[str]], int | None], problem: str
) -> ServedClassifier:
    names = [name] if name is not None else registry.names(ServedClassifier)
    # Without any, the registry's own refusal.
    candidates = [registry.get(ServedClassifier, each) for each in names] or [registry.get(ServedClassifier, None)]
    for served in candidates:
        if place(served.ready.labels) is not None:
            return served
    first = candidates[0]
    raise InvalidRequest(f"Model {first.name} {problem.format(len(first.ready.labels))}: name one.", param="model")


async def relevances(
    served: ServedClassifier,
    pairs: Sequence[TextPair],
    truncation: Truncation | None,
    record: RequestRecord,
    *,
    is_raw: bool = False,
) -> list[float]:
    """For each pair how well its second text answers the first.

    A probability, unless the model's problem is a regression; raw, the number whose sigmoid that is.
    """
    logits = await served.logits(pairs, truncation, record)
    return [_relevance(served, logits_L, is_raw) for logits_L in logits]


def _relevance(served: ServedClassifier, logits_L: NDArray[np.float32], is_raw: bool) -> float:
    place = relevance_place(served.ready.labels)
    assert place is not None, "found by find_reranker"
    function = served.default_function
    if not is_raw:
        return float(apply_function(function, logits_L)[place])
    # Softmax of two logits is the sigmoid of their difference.
    other = logits_L[1 - place] if function == "softmax" else np.float32(0)
    return float(logits_L[place] - other)


@dataclass(frozen=True, kw_only=True)
class Hypotheses:
    """What is to be said of each text, one sentence for each label."""

    labels: Sequence[str]
    template: str = DEFAULT_HYPOTHESIS
    """Its ``{}`` is where a label goes."""
    is_multi_label: bool = False
    """Any number of labels may fit: each one's score is then of its own, and they do not add up to 1."""

    def __post_init__(self) -> None:
        if not self.labels or not all(self.labels):
            raise InvalidParameter(
                "candidate_labels", list(self.labels), "must contain at least one label, and no empty ones"
            )
        if self.template.count("{}") != 1:
            raise InvalidParameter("hypothesis_template", self.template, "must contain {} exactly once")

    def pairs(self, text: str) -> list[TextPair]:
        return [TextPair(text, self.template.replace("{}", label)) for label in self.labels]


async def zero_shot(
    served: ServedClassifier,
    texts: Sequence[str],
    hypotheses: Hypotheses,
    truncation: Truncation | None,
    record: RequestRecord,
) -> list[list[LabelScore]]:
    """For each text the labels and how far it entails that they fit, the highest score first."""
    # Before they are made: a small body can ask for a great many.
    served.check_size(len(texts) * len(hypotheses.labels))
    pairs = [pair for text in texts for pair in hypotheses.pairs(text)]
    logits_ML = await served.logits(pairs, truncation, record)
    size = len(hypotheses.labels)
    parts = [np.stack(logits_ML[start : start + size]) for start in range(0, len(pairs), size)]
    return [_ranked(served.ready.labels, hypotheses, part_ML) for part_ML in parts]


def _ranked(own_labels: Sequence[str], hypotheses: Hypotheses, logits_ML: NDArray[np.float32]) -> list[LabelScore]:
    """``logits_ML`` has a row for each of the client's labels."""
    entailment = entailment_place(own_labels)
    assert entailment is not None, "found by find_nli"
    # Of one label, all that can be asked is whether it fits.
    if hypotheses.is_multi_label or len(hypotheses.labels) == 1:
        scores_M = softmax(logits_ML[:, [contradiction_place(own_labels), entailment]])[:, 1]
    else:
        scores_M = softmax(logits_ML[:, entailment])
    pairs = zip(hypotheses.labels, scores_M.tolist(), strict=True)
    return sorted((LabelScore(*pair) for pair in pairs), key=lambda pair: pair.score, reverse=True)
