"""``/predict``, ``/embed`` and ``/similarity`` in the shapes of Text Embeddings Inference, strictly."""

from __future__ import annotations

from typing import Annotated

from fastapi import Response
from pydantic import Field

from server.api.bodies.lookup import model_name
from server.api.bodies.router import DialectRouter
from server.api.bodies.schemas import AT_LEAST_1, STOP_AT_FIRST_ERROR, StrictModel, TextOrTexts, one_error
from server.api.bodies.truncation import TeiTruncation
from server.api.context import ContextDep
from server.api.dialects.hf.schemas import LabelReply
from server.api.encode.run import reply_to_texts, run, vectors
from server.api.http.dialect import SLUICE
from server.api.http.json_reply import json_reply
from server.serving.classifier import ClassifyOptions, LabelScore, ServedClassifier, TextPair
from server.serving.embedder import EmbedOptions, cosines

classify_router = DialectRouter(SLUICE, "text-embeddings-inference")
embed_router = DialectRouter(SLUICE, "text-embeddings-inference")

OneOrPair = Annotated[list[str], Field(min_length=1, max_length=2)]
PredictInputs = Annotated[
    str | OneOrPair | Annotated[list[OneOrPair], STOP_AT_FIRST_ERROR, Field(min_length=1)],
    one_error("a text, a pair as a list of two texts, or a list of lists of one or two texts"),
]


class PredictBody(TeiTruncation, StrictModel):
    """Body of ``POST /predict``. A list of two texts is one pair here, where ``/classify`` reads two texts."""

    inputs: PredictInputs
    raw_scores: bool | None = None
    model: str | None = None


class EmbedBody(TeiTruncation, StrictModel):
    """Body of ``POST /embed``."""

    inputs: TextOrTexts
    """A list must contain at least one text."""
    normalize: bool | None = None
    """False for vectors of the length that the model gives them."""
    prompt_name: str | None = None
    """It names a prompt that this model has."""
    dimensions: Annotated[int, AT_LEAST_1] | None = None
    """Keep the first numbers of each vector: must be 1 to the size which the model has."""
    model: str | None = None
    """The name of a served model for embeddings; without it the first one."""


class Comparison(StrictModel):
    """A sentence, and those it is compared with."""

    source_sentence: str
    sentences: Annotated[list[str], STOP_AT_FIRST_ERROR, Field(min_length=1)]


class SimilarityParameters(TeiTruncation, StrictModel):
    """How the sentences are read."""

    prompt_name: str | None = None
    """It names a prompt that this model has."""


class SimilarityBody(StrictModel):
    """Body of ``POST /similarity``."""

    inputs: Comparison
    parameters: SimilarityParameters | None = None
    model: str | None = None


@classify_router.post("/predict", response_model=list[LabelReply] | list[list[LabelReply]])
async def predict(body: PredictBody, context: ContextDep) -> Response:
    """Labels of a text or a pair, the highest score first; a list of such lists for a list of lists."""
    is_batch = isinstance(body.inputs, list) and isinstance(body.inputs[0], list)
    inputs = body.inputs if is_batch else [body.inputs]
    pairs = [TextPair(item) if isinstance(item, str) else TextPair(*item) for item in inputs]
    served = context.registry.get(ServedClassifier, model_name(context.registry, ServedClassifier, body.model))
    options = ClassifyOptions(function="none" if body.raw_scores else None, truncation=body.tei_truncation())
    results = await run(context, served, pairs, lambda record: served.classify(pairs, options, record))
    labels = [[_label(score) for score in scores] for scores in results]
    return json_reply(labels if is_batch else labels[0])


@embed_router.post("/embed", response_model=list[list[float]])
async def embed(body: EmbedBody, context: ContextDep) -> Response:
    """The vector of each text, also where there is but one, with the length 1 unless ``normalize`` is false."""
    options = EmbedOptions(
        dimensions=body.dimensions,
        normalize=body.normalize is not False,
        prompt_name=body.prompt_name,
        truncation=body.tei_truncation(),
    )
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    found = await vectors(context, body.model, texts, options, {})
    return await reply_to_texts(texts, found, lambda vector: vector.tolist())


@embed_router.post("/similarity", response_model=list[float])
async def similarity(body: SimilarityBody, context: ContextDep) -> Response:
    """For each of ``sentences`` the cosine of the angle between its vector and that of ``source_sentence``."""
    parameters = body.parameters or SimilarityParameters()
    options = EmbedOptions(prompt_name=parameters.prompt_name, truncation=parameters.tei_truncation())
    names = {"prompt_name": "parameters.prompt_name", "inputs": "inputs.sentences"}
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    first, *others = await vectors(context, body.model, texts, options, names)
    return json_reply(cosines(first, others))


def _label(score: LabelScore) -> LabelReply:
    return {"label": score.label, "score": score.score}
