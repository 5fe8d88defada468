"""``POST /v1/embeddings``: vectors of texts, in OpenAI's shape."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import Response

from server.api.bodies.fields import LenientModel, Refusal
from server.api.bodies.router import DialectRouter
from server.api.bodies.schemas import AT_LEAST_1, STOP_AT_FIRST_ERROR, Ids, one_error
from server.api.bodies.truncation import VllmTruncation
from server.api.context import ContextDep
from server.api.dialects.openai.dialect import OPENAI
from server.api.encode.run import usage, vectors
from server.api.http.json_reply import json_reply
from server.api.text.shapes import head
from server.serving.embedder import EmbedOptions, Vector
from server.serving.record import RequestRecord

router = DialectRouter(OPENAI, "openai")

Input = Annotated[
    str | Annotated[list[str], STOP_AT_FIRST_ERROR] | Ids | Annotated[list[Ids], STOP_AT_FIRST_ERROR],
    one_error("a string, a list of strings, a list of token ids, or a list of such lists"),
]
REFUSED = {
    "add_special_tokens": Refusal("the model always uses them", (True,)),
    "messages": Refusal("send input"),
    "priority": Refusal("requests run in order of arrival", (0,)),
}


class EmbeddingsBody(VllmTruncation, LenientModel):
    """Body of ``POST /v1/embeddings``: OpenAI's fields, vLLM's truncation, and a prompt of the model's folder."""

    refused = REFUSED

    input: Input
    """Texts, or this model's token ids; it must contain at least one text. LangChain's OpenAIEmbeddings sends ids of
    another model unless it is given check_embedding_ctx_length=False."""
    model: str | None = None
    dimensions: Annotated[int, AT_LEAST_1] | None = None
    """Keep the first numbers of each vector: must be 1 to the size which the model has."""
    encoding_format: Literal["float", "base64"] | None = None
    normalize: bool | None = None
    prompt_name: str | None = None
    """It names a prompt that this model has."""


@router.post("/v1/embeddings", response_model=None)
async def embeddings(body: EmbeddingsBody, context: ContextDep) -> Response:
    """The vector of ``input``, or of each of a list: as the model's folder says, or with the length ``dimensions``.

    Token ids are the model's own, special ones included, and no prompt goes before them.
    ``base64`` is of float32 numbers, the lowest byte first.
    """
    options = EmbedOptions(
        dimensions=body.dimensions,
        normalize=body.normalize,
        prompt_name=body.prompt_name,
        truncation=body.vllm_truncation(),
    )
    names = {"inputs": "input", "truncate to true": "truncate_prompt_tokens to -1"}
    found = await vectors(context, body.model, _inputs(body.input), options, names)
    # In a thread: hundreds of vectors are hundreds of thousands of numbers to write.
    return await asyncio.to_thread(_reply, found, body.encoding_format == "base64", context.record)


def _inputs(given: str | Sequence[str] | Sequence[int] | Sequence[list[int]]) -> list[str | list[int]]:
    """Each text or each list of token ids; a list of numbers alone is one."""
    if isinstance(given, str):
        return [given]
    ids = [item for item in given if isinstance(item, int)]
    return [ids] if ids else [item for item in given if not isinstance(item, int)]


def _reply(found: Sequence[Vector], is_base64: bool, record: RequestRecord) -> Response:
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if is_base64 else vector.tolist()}
        for index, vector in enumerate(found)
    ]
    return json_reply({**head("list", "embd", record), "data": data, "usage": usage(record)})


def _base64(vector: Vector) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
