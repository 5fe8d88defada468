"""``POST /v1/classify``: labels of texts in vLLM's shape, whose bodies ``POST /classify`` takes too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import Response
from numpy.typing import NDArray

from server.api.bodies.fields import LenientModel
from server.api.bodies.lookup import model_name
from server.api.bodies.router import DialectRouter
from server.api.bodies.schemas import TextOrTexts
from server.api.bodies.truncation import VllmTruncation
from server.api.context import Context, ContextDep
from server.api.dialects.openai.dialect import OPENAI
from server.api.dialects.openai.embeddings import REFUSED
from server.api.encode.run import run, usage
from server.api.http.json_reply import json_reply
from server.api.text.shapes import head
from server.sentences import Reader
from server.serving.classifier import ServedClassifier, TextPair
from server.text.truncation import Truncation

router = DialectRouter(OPENAI, "openai")

NAMES = {"inputs": "input", "truncate to true": "truncate_prompt_tokens to -1"}


class ClassifyBody(VllmTruncation, LenientModel):
    """Body of ``POST /v1/classify``."""

    refused = REFUSED

    input: TextOrTexts
    """A text, or a list that must contain at least one text."""
    model: str | None = None
    use_activation: bool | None = None


@router.post("/v1/classify", response_model=None)
async def classify(body: ClassifyBody, context: ContextDep) -> Response:
    """The likeliest label of ``input``, or of each of a list, and the scores of all in the model's order.

    ``/info`` names the labels in that order. With ``use_activation`` false the scores are logits.
    """
    context.record.reader = Reader(NAMES)
    return await answer(context, body.model, body.input, body.use_activation is False, body.vllm_truncation())


async def answer(
    context: Context, model: str | None, inputs: str | list[str], is_raw: bool, truncation: Truncation | None = None
) -> Response:
    """What vLLM's clients read."""
    served = context.registry.get(ServedClassifier, model_name(context.registry, ServedClassifier, model))
    pairs = [TextPair(text) for text in ([inputs] if isinstance(inputs, str) else inputs)]
    scores = await run(context, served, pairs, lambda record: served.scores(pairs, truncation, record, is_raw=is_raw))
    answered = {"data": _data(served.ready.labels, scores), "usage": usage(context.record)}
    return json_reply({**head("list", "classify", context.record), **answered})


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
