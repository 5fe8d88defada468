"""``GET /templates``: the operator's prompt templates and the variables that they take."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from server.serving.templates import Templates

router = APIRouter(tags=["templates"])


@router.get("/templates", response_model=None)
async def templates(request: Request) -> dict[str, list[dict[str, Any]]]:
    """Every version of every template, with its task, description and variables."""
    return {"templates": _templates(request).describe()}


@router.get("/templates/{name}", response_model=None)
async def template(name: str, request: Request) -> dict[str, Any]:
    """One of them: ``name`` is its highest version, ``name@version`` the one that it says."""
    return _templates(request).find(name).describe()


def _templates(request: Request) -> Templates:
    templates: Templates = request.app.state.registry.services.templates
    return templates
