"""``/rerank``: texts in the order in which they answer a query, for clients of three dialects.

``texts`` is Text Embeddings Inference's field and gets its answer; ``documents`` is Cohere's, Jina's and vLLM's.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Response

from server.api.bodies.fields import LenientModel, Refusal
from server.api.bodies.router import DialectRouter
from server.api.bodies.schemas import AT_LEAST_1, STOP_AT_FIRST_ERROR, Texts, one_error
from server.api.bodies.truncation import EitherTruncation
from server.api.context import ContextDep
from server.api.dialects.openai.dialect import OPENAI
from server.api.dialects.vllm.dialect import VLLM
from server.api.encode.run import relevances, usage
from server.api.http.json_reply import json_reply
from server.errors import ConflictingParameters, InvalidParameter, InvalidRequest
from server.serving.classifier import TextPair
from server.serving.record import RequestRecord

router = DialectRouter(VLLM, "rerank")
v1_router = DialectRouter(OPENAI, "rerank")

REFUSED = {
    "max_tokens_per_doc": Refusal("set truncate_prompt_tokens for query and document together"),
    "max_chunks_per_doc": Refusal("documents are not split into chunks"),
    "rank_fields": Refusal("documents are texts"),
    "priority": Refusal("requests run in order of arrival", (0,)),
}


class Document(LenientModel):
    """A document as an object."""

    text: str


Documents = Annotated[
    list[Annotated[str | Document, one_error("a string or an object with text")]], STOP_AT_FIRST_ERROR
]


class RerankBody(EitherTruncation, LenientModel):
    """Body of ``POST /rerank``."""

    refused = REFUSED

    query: str
    """What the texts or documents are to answer."""
    texts: Texts | None = None
    """Must contain at least one text. The response then has the shape of Text Embeddings Inference."""
    raw_scores: bool | None = None
    """Scores before the sigmoid. It goes with texts alone."""
    return_text: bool | None = None
    """Each text with its score. It goes with texts alone."""
    documents: Documents | None = None
    """Must contain at least one text. documents is required, unless there are texts. They belong to different APIs;
    send only one."""
    top_n: Annotated[int, AT_LEAST_1] | None = None
    """How many come back, at least 1. It goes with documents alone."""
    return_documents: bool | None = None
    """False leaves the texts out. It goes with documents alone."""
    model: str | None = None
    """The name of a served reranker; without it the first one."""


OF_TEXTS = ("raw_scores", "return_text")
OF_DOCUMENTS = ("top_n", "return_documents")


@router.post("/rerank", response_model=None)
@v1_router.post("/v1/rerank", response_model=None)
@router.post("/v2/rerank", response_model=None)
async def rerank(body: RerankBody, context: ContextDep) -> Response:
    """``texts`` or ``documents``, each by its place in the list, in falling order of how well it answers ``query``."""
    name, texts = _texts(body)
    if body.top_n is not None and body.top_n < 1:
        raise InvalidParameter("top_n", body.top_n, "must be at least 1")
    pairs = [TextPair(body.query, text) for text in texts]
    names = {"inputs": name}
    scores = await relevances(context, body.model, pairs, body.truncation(), names, is_raw=bool(body.raw_scores))
    ranked = sorted(enumerate(scores), key=lambda entry: entry[1], reverse=True)
    if name == "texts":
        shown = bool(body.return_text)
        return json_reply([_tei(index, score, texts[index] if shown else None) for index, score in ranked])
    return json_reply(_cohere(body, texts, ranked[: body.top_n], context.record))


def _texts(body: RerankBody) -> tuple[str, list[str]]:
    """The field that is given, and what is in it."""
    if body.texts is not None and body.documents is not None:
        raise ConflictingParameters("texts", "documents", "they belong to different APIs; send only one")
    for name in OF_DOCUMENTS if body.texts is not None else OF_TEXTS:
        if getattr(body, name) is not None:
            other = "documents" if body.texts is not None else "texts"
            raise InvalidRequest(f"{name} requires {other}.", param=name)
    if body.texts is not None:
        return "texts", body.texts
    if body.documents is None:
        raise InvalidRequest("documents is required, unless there are texts.", param="documents")
    return "documents", [item if isinstance(item, str) else item.text for item in body.documents]


def _tei(index: int, score: float, text: str | None) -> dict[str, Any]:
    entry = {"index": index, "score": score}
    return entry if text is None else {**entry, "text": text}


def _cohere(
    body: RerankBody, texts: list[str], ranked: list[tuple[int, float]], record: RequestRecord
) -> dict[str, Any]:
    results = [
        {"index": index, "relevance_score": score}
        if body.return_documents is False
        else {"index": index, "document": {"text": texts[index]}, "relevance_score": score}
        for index, score in ranked
    ]
    return {"id": f"rerank-{record.request_id}", "model": record.model, "usage": usage(record), "results": results}
