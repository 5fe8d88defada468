"""``POST /zero-shot-classification``: any labels, by a model of natural language inference; Hugging Face's shapes."""

from __future__ import annotations

from typing import Annotated

from fastapi import Response

from server.api.bodies.lookup import model_name
from server.api.bodies.router import DialectRouter
from server.api.bodies.schemas import NOT_EMPTY, StrictModel, TextOrTexts, one_error
from server.api.context import ContextDep
from server.api.dialects.hf.schemas import LabelReply
from server.api.encode.run import reply_to_texts, run
from server.api.http.dialect import SLUICE
from server.sentences import Reader
from server.serving import pair_scores
from server.serving.classifier import LabelScore, ServedClassifier
from server.text.truncation import Truncation

router = DialectRouter(SLUICE)


class ZeroShotParameters(StrictModel):
    """The labels, and how they are asked about."""

    candidate_labels: Annotated[
        str | Annotated[list[str], NOT_EMPTY], one_error("a list of strings, or a string of labels separated by commas")
    ]
    """Must contain at least one label, and no empty ones."""
    hypothesis_template: str | None = None
    """Must contain {} exactly once, where the label goes."""
    multi_label: bool | None = None
    truncate: bool | None = None


class ZeroShotRequest(StrictModel):
    """Body of ``POST /zero-shot-classification``."""

    inputs: TextOrTexts
    """A list must contain at least one text."""
    parameters: ZeroShotParameters
    model: str | None = None


@router.post("/zero-shot-classification", response_model=list[LabelReply] | list[list[LabelReply]])
async def zero_shot_classification(body: ZeroShotRequest, context: ContextDep) -> Response:
    """How well each of ``candidate_labels`` fits, the highest score first; a list of such lists for a list of texts.

    The model is asked whether the text entails ``hypothesis_template`` with the label in place of ``{}``.
    """
    registry = context.registry
    served = pair_scores.find_nli(registry, model_name(registry, ServedClassifier, body.model))
    parameters = body.parameters
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    truncation = Truncation() if parameters.truncate else None
    results = await run(
        context,
        served,
        texts,
        lambda record: pair_scores.zero_shot(served, texts, _hypotheses(parameters), truncation, record),
        Reader(parameters=ZeroShotParameters.model_fields),
    )
    return await reply_to_texts(body.inputs, results, _labels)


def _hypotheses(parameters: ZeroShotParameters) -> pair_scores.Hypotheses:
    labels = parameters.candidate_labels
    return pair_scores.Hypotheses(
        labels=[label.strip() for label in labels.split(",")] if isinstance(labels, str) else labels,
        template=parameters.hypothesis_template or pair_scores.DEFAULT_HYPOTHESIS,
        is_multi_label=bool(parameters.multi_label),
    )


def _labels(scores: list[LabelScore]) -> list[LabelReply]:
    return [{"label": score.label, "score": score.score} for score in scores]
