"""Which of several samples are the best: by their mean log-probability, or by a classifier of the user's own."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.errors import InvalidParameter
from server.serving.classifier import ServedClassifier
from server.serving.generation import Generation
from server.serving.options.types import RankBy
from server.serving.output_text import OutputText
from server.serving.record import RequestRecord


@dataclass(frozen=True)
class LabelScorer:
    """Scores texts by one label of a served classifier."""

    classifier: ServedClassifier
    label: str

    @classmethod
    def find(cls, rank_by: RankBy, classifiers: Mapping[str, ServedClassifier]) -> LabelScorer:
        """Raises `InvalidParameter` for a classifier that is not served or a label that it does not have."""
        classifier = classifiers.get(rank_by.model)
        if classifier is None:
            served = (
                f"one of the served classifiers: {', '.join(classifiers)}" if classifiers else "a served classifier"
            )
            raise InvalidParameter("rank_by", rank_by.model, f"must name {served}")
        if rank_by.label not in classifier.ready.labels:
            rule = f"must name a label of {rank_by.model}: {', '.join(classifier.ready.labels)}"
            raise InvalidParameter("rank_by", rank_by.label, rule)
        return cls(classifier, rank_by.label)

    async def score(self, texts: Sequence[str], record: RequestRecord) -> list[float]:
        """The label's score for each text, cut where the classifier takes no more; the least for an empty one."""
        # A record of its own: what the classifier reads is no part of the prompt.
        return await self.classifier.label_scores(texts, self.label, copy.copy(record))


async def rank(generation: Generation, scorer: LabelScorer | None, record: RequestRecord) -> None:
    """Give every output its score and put the best first; equal ones stay in order."""
    outputs = generation.outputs
    if scorer is None:
        scores = [output.mean_logprob for output in outputs]
    else:
        scores = await scorer.score([output.text for output in outputs], record)
    for output, score in zip(outputs, scores, strict=True):
        output.score = score
    generation.ranked = sorted(outputs, key=_falling)


def _falling(output: OutputText) -> float:
    score = output.score
    return math.inf if score is None or math.isnan(score) else -score
