"""What the routes for pairs of texts have in common: find the model, run while the client stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastapi import Request

from server.api.bodies.field_names import field_names
from server.api.bodies.lookup import model_name
from server.api.http.disconnect import until_disconnect
from server.serving import pair_scores
from server.serving.classifier import ServedClassifier, TextPair
from server.serving.record import RequestRecord
from server.serving.registry import Registry
from server.text.truncation import Truncation


async def relevances(
    request: Request,
    model: str | None,
    pairs: Sequence[TextPair],
    truncation: Truncation | None,
    names: Mapping[str, str],
    *,
    is_raw: bool = False,
) -> list[float]:
    """For each pair how well its second text answers the first; errors call our fields by ``names``."""
    registry: Registry = request.app.state.registry
    served = pair_scores.find_reranker(registry, model_name(registry, ServedClassifier, model))
    record: RequestRecord = request.state.record
    record.model, record.num_inputs = served.name, len(pairs)
    with field_names(names):
        work = pair_scores.relevances(served, pairs, truncation, record, is_raw=is_raw)
        return await until_disconnect(request, work)
