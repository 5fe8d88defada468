"""What the routes for embeddings have in common: find the model, run while the client stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastapi import Request

from server.api.bodies.field_names import field_names
from server.api.bodies.lookup import model_name
from server.api.http.disconnect import until_disconnect
from server.serving.embedder import EmbedOptions, ServedEmbedder, Vector
from server.serving.record import RequestRecord
from server.serving.registry import Registry


async def vectors(
    request: Request,
    model: str | None,
    texts: Sequence[str | list[int]],
    options: EmbedOptions,
    names: Mapping[str, str],
) -> list[Vector]:
    """Each text's vector; errors call our fields by ``names``."""
    registry: Registry = request.app.state.registry
    served: ServedEmbedder = registry.get(ServedEmbedder, model_name(registry, ServedEmbedder, model))
    record: RequestRecord = request.state.record
    record.model, record.num_inputs = served.name, len(texts)
    with field_names(names):
        return await until_disconnect(request, served.embed(texts, options, record))
