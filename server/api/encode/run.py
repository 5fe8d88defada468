"""One request to an encoder: note its model and its inputs, run until the client leaves, reply."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from fastapi import Response

from server.api.bodies.lookup import model_name
from server.api.context import Context
from server.api.http.json_reply import json_reply
from server.sentences import Names, Reader
from server.serving import pair_scores
from server.serving.classifier import ServedClassifier, TextPair
from server.serving.embedder import EmbedOptions, ServedEmbedder, Vector
from server.serving.encoder_client import ServedEncoder
from server.serving.record import RequestRecord
from server.text.truncation import Truncation

R = TypeVar("R")


async def run(
    context: Context,
    served: ServedEncoder,
    inputs: Sequence[Any],
    work: Callable[[RequestRecord], Awaitable[R]],
    reader: Reader | None = None,
) -> R:
    """The work's result. Errors are written for ``reader``."""
    record = context.record
    record.model, record.num_inputs = served.name, len(inputs)
    record.reader = reader or record.reader
    return await context.until_disconnect(work(record))


async def vectors(
    context: Context, model: str | None, texts: Sequence[str | list[int]], options: EmbedOptions, names: Names
) -> list[Vector]:
    """Each text's vector by the named model for embeddings, or the first one."""
    served = context.registry.get(ServedEmbedder, model_name(context.registry, ServedEmbedder, model))
    return await run(context, served, texts, lambda record: served.embed(texts, options, record), Reader(names))


async def relevances(
    context: Context,
    model: str | None,
    pairs: Sequence[TextPair],
    truncation: Truncation | None,
    names: Names,
    *,
    is_raw: bool = False,
) -> list[float]:
    """How well each pair's second text answers the first, by the named reranker or the first one."""
    registry = context.registry
    served = pair_scores.find_reranker(registry, model_name(registry, ServedClassifier, model))
    return await run(
        context,
        served,
        pairs,
        lambda record: pair_scores.relevances(served, pairs, truncation, record, is_raw=is_raw),
        Reader(names),
    )


def usage(record: RequestRecord) -> dict[str, Any]:
    """OpenAI's usage of a request whose answer has no tokens."""
    return {"prompt_tokens": record.prompt_tokens, "total_tokens": record.prompt_tokens}


async def reply_to_texts(inputs: str | list[str], results: Sequence[R], render: Callable[[R], Any]) -> Response:
    """One text's result, or a list of results for a list of texts.

    Rendered in a thread: an answer may hold a hundred thousand entities, or tens of thousands of candidates with texts.
    """

    def rendered() -> Response:
        replies = [render(result) for result in results]
        return json_reply(replies[0] if isinstance(inputs, str) else replies)

    return await asyncio.to_thread(rendered)
