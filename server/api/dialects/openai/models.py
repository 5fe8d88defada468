"""``GET /v1/models``: what is served, in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from server.api.bodies.router import DialectRouter
from server.api.context import ContextDep
from server.api.dialects.openai.dialect import OPENAI
from server.serving.registry import Registry, Served

router = DialectRouter(OPENAI, "openai")


@router.get("/v1/models", response_model=None)
async def models(context: ContextDep) -> dict[str, Any]:
    """Every model, the first of a task before the others of it. ``task`` says which routes it answers."""
    context.record.route = "/v1/models"
    registry = context.registry
    return {"object": "list", "data": [_model(served, registry) for served in registry.all()]}


@router.get("/v1/models/{name:path}", response_model=None)
async def model(name: str, context: ContextDep) -> dict[str, Any]:
    """One model. Its name may hold slashes."""
    context.record.route = "/v1/models"
    return _model(context.registry.find(name), context.registry)


def _model(served: Served, registry: Registry) -> dict[str, Any]:
    version = {} if served.adapter is None else {"digest": served.adapter.digest}
    return {
        "id": served.name,
        "object": "model",
        # Clients want to know when it was made. A folder does not say, and the server's start is a time that stays.
        "created": registry.created_s,
        "owned_by": "sluice",
        "root": served.origin.root,
        "parent": served.origin.parent,
        "max_model_len": served.ready.max_model_len,
        "task": served.ready.task,
        **version,
    }
