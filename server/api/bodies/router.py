"""Routes of one dialect, whose bodies are parsed once and checked before the route runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers

from server.api.bodies.fields import LenientModel, check_fields
from server.api.http.body_value import JSON_TYPE
from server.api.http.dialect import Dialect


class DialectRouter(APIRouter):
    """A route is handed its body as ``body`` and its context as ``context``."""

    def __init__(self, dialect: Dialect, *tags: str) -> None:
        super().__init__(route_class=_Route, tags=[*tags] or None)
        self.dialect = dialect

    @property
    def paths(self) -> list[str]:
        return [route.path_format for route in self.routes if isinstance(route, APIRoute)]

    @property
    def work_paths(self) -> list[str]:
        """The paths that take work, all by POST."""
        return [route.path for route in self.routes if isinstance(route, APIRoute) and "POST" in (route.methods or ())]

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().add_api_route(path, _checked(endpoint), **options)


def _checked(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(endpoint)
    async def call(**values: Any) -> Any:
        body = values.get("body")
        if isinstance(body, LenientModel):
            check_fields(values["context"], body)
        return await endpoint(**values)

    return call


class _Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def parsed(request: Request) -> Response:
            return await handle(_ParsedRequest(request.scope, request.receive))

        return parsed


class _ParsedRequest(Request):
    """A request whose body has been parsed by `BodyGate`."""

    @functools.cached_property
    def headers(self) -> Headers:
        """With the type of JSON, also for a form: FastAPI calls `json` for this type alone."""
        others = [(name, value) for name, value in self.scope["headers"] if name != b"content-type"]
        return Headers(raw=[*others, (b"content-type", JSON_TYPE.encode())])

    async def json(self) -> Any:
        return self.state.json
