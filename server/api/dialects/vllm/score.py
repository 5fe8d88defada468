"""``/v1/score``: how well texts answer texts, pair by pair, in vLLM's shape."""

from __future__ import annotations

from fastapi import Response

from server.api.bodies.fields import LenientModel
from server.api.bodies.router import DialectRouter
from server.api.bodies.schemas import TextOrTexts
from server.api.bodies.truncation import VllmTruncation
from server.api.context import ContextDep
from server.api.dialects.openai.dialect import OPENAI
from server.api.dialects.openai.embeddings import REFUSED
from server.api.dialects.vllm.dialect import VLLM
from server.api.encode.run import relevances, usage
from server.api.http.json_reply import json_reply
from server.api.text.shapes import head
from server.errors import ConflictingParameters, InvalidRequest
from server.serving.classifier import TextPair

router = DialectRouter(VLLM, "rerank")
v1_router = DialectRouter(OPENAI, "rerank")


class ScoreBody(VllmTruncation, LenientModel):
    """Body of ``POST /v1/score``: ``text_1`` and ``text_2`` or, as newer clients say, ``queries`` and ``documents``."""

    refused = REFUSED

    text_1: TextOrTexts | None = None
    """Required, unless there are queries. One text, or as many as in text_2: send text_1 and text_2 together."""
    text_2: TextOrTexts | None = None
    """What is judged with text_1; a list must contain at least one text."""
    queries: TextOrTexts | None = None
    """Another name of text_1: send queries and documents together, and neither text_1 nor text_2 with them."""
    documents: TextOrTexts | None = None
    """Another name of text_2, required with queries; one text in queries, or as many in both."""
    use_activation: bool | None = None
    """False for scores before the sigmoid."""
    model: str | None = None


@v1_router.post("/v1/score", response_model=None)
@router.post("/score", response_model=None)
async def score(body: ScoreBody, context: ContextDep) -> Response:
    """A score for each pair: one text with each of a list, or two lists side by side."""
    first, second = ("queries", "documents") if body.queries is not None else ("text_1", "text_2")
    pairs = _pairs(body, first, second)
    names = {"inputs": second, "truncate to true": "truncate_prompt_tokens to -1"}
    is_raw = body.use_activation is False
    scores = await relevances(context, body.model, pairs, body.vllm_truncation(), names, is_raw=is_raw)
    data = [{"index": index, "object": "score", "score": value} for index, value in enumerate(scores)]
    record = context.record
    return json_reply({**head("list", "score", record), "data": data, "usage": usage(record)})


def _pairs(body: ScoreBody, first: str, second: str) -> list[TextPair]:
    for name in {"text_1", "text_2", "queries", "documents"} - {first, second}:
        if getattr(body, name) is not None:
            raise ConflictingParameters(first, name, f"send {first} and {second}")
    for name in (first, second):
        if getattr(body, name) is None:
            raise InvalidRequest(f"{name} is missing: it is required.", param=name)
    left, right = _texts(getattr(body, first)), _texts(getattr(body, second))
    if len(left) not in (1, len(right)):
        raise InvalidRequest(
            f"{first} has {len(left)} texts and {second} {len(right)}: send one text in {first}, or as many in both.",
            param=first,
        )
    return [TextPair(*pair) for pair in zip(left * len(right) if len(left) == 1 else left, right, strict=True)]


def _texts(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given
