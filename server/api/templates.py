"""``GET /templates``: the operator's prompt templates and the variables that they take."""

from __future__ import annotations

from typing import Any

from server.api.bodies.router import DialectRouter
from server.api.context import FrontDep
from server.api.http.dialect import SLUICE

router = DialectRouter(SLUICE, "templates")


@router.get("/templates", response_model=None)
async def templates(front: FrontDep) -> dict[str, list[dict[str, Any]]]:
    """Every version of every template, with its task, description and variables."""
    return {"templates": front.registry.services.templates.describe()}


@router.get("/templates/{name}", response_model=None)
async def template(name: str, front: FrontDep) -> dict[str, Any]:
    """One of them: ``name`` is its highest version, ``name@version`` the one that it says."""
    return front.registry.services.templates.find(name).describe()
