"""``POST /v1/classify``: labels of texts in vLLM's shape, whose bodies ``POST /classify`` takes too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from server.api.bodies.field_names import field_names
from server.api.bodies.fields import LenientModel, check_fields
from server.api.bodies.lookup import model_name
from server.api.bodies.schemas import TextOrTexts
from server.api.bodies.truncation import VllmTruncation
from server.api.dialects.openai.embeddings import REFUSED, usage
from server.api.encode import run as encoder_route
from server.api.http.disconnect import until_disconnect
from server.api.text.shapes import head
from server.serving.classifier import ServedClassifier, TextPair
from server.serving.record import RequestRecord
from server.serving.registry import Registry
from server.text.truncation import Truncation

router = APIRouter(tags=["openai"])

NAMES = {"inputs": "input", "truncate to true": "truncate_prompt_tokens to -1"}


class ClassifyBody(VllmTruncation, LenientModel):
    """Body of ``POST /v1/classify``."""

    input: TextOrTexts
    """A text, or a list that must contain at least one text."""
    model: str | None = None
    use_activation: bool | None = None


@router.post("/v1/classify", response_model=None)
async def classify(body: ClassifyBody, request: Request) -> Response:
    """The likeliest label of ``input``, or of each of a list, and the scores of all in the model's order.

    ``/info`` names the labels in that order. With ``use_activation`` false the scores are logits.
    """
    check_fields(request, body, REFUSED)
    with field_names(NAMES):
        return await answer(request, body.model, body.input, body.use_activation is False, body.vllm_truncation())


async def answer(
    request: Request, model: str | None, inputs: str | list[str], is_raw: bool, truncation: Truncation | None = None
) -> Response:
    """What vLLM's clients read."""
    registry: Registry = request.app.state.registry
    served: ServedClassifier = registry.get(ServedClassifier, model_name(registry, ServedClassifier, model))
    pairs = [TextPair(text) for text in ([inputs] if isinstance(inputs, str) else inputs)]
    record: RequestRecord = request.state.record
    record.model, record.num_inputs = served.name, len(pairs)
    scores = await until_disconnect(request, served.scores(pairs, truncation, record, is_raw=is_raw))
    answered = {"data": _data(served.ready.labels, scores), "usage": usage(record)}
    return encoder_route.reply({**head("list", "classify", record), **answered})


def _data(labels: Sequence[str], scores: Sequence[NDArray[np.float32]]) -> list[dict[str, Any]]:
    return [
        {
            "index": index,
            "label": labels[int(scores_L.argmax())],
            "probs": scores_L.tolist(),
            "num_classes": len(labels),
        }
        for index, scores_L in enumerate(scores)
    ]
