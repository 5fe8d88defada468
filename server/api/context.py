"""What FastAPI hands to a route: the request, its record, and the server behind them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from server.api.http.dialect import Dialect
from server.api.http.disconnect import until_disconnect
from server.api.http.sse import ErrorBody, Events, EventStream, event_stream
from server.client.supervisor import Supervisor
from server.config import ServeConfig
from server.serving.adapter_loading import AdapterLoader
from server.serving.adapter_watch import AdapterWatch
from server.serving.lifecycle import Lifecycle
from server.serving.mixtures import Mixtures
from server.serving.record import RequestRecord
from server.serving.registry import Registry

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """What the routes of one application share."""

    config: ServeConfig
    supervisor: Supervisor
    registry: Registry
    lifecycle: Lifecycle
    has_keys: bool
    """Whether clients need an API key."""
    adapters: AdapterLoader
    mixtures: Mixtures
    watch: AdapterWatch | None
    """Of the folder of adapters that is followed."""


@dataclass(frozen=True, slots=True)
class Context:
    """One request to one application."""

    request: Request
    front: Front

    @property
    def registry(self) -> Registry:
        return self.front.registry

    @property
    def record(self) -> RequestRecord:
        record: RequestRecord = self.request.state.record
        return record

    @property
    def dialect(self) -> Dialect:
        dialect: Dialect = self.request.state.dialect
        return dialect

    async def until_disconnect(self, work: Awaitable[T]) -> T:
        """The work's result; it is cancelled and `ClientDisconnect` raised if the client leaves first."""
        return await until_disconnect(self.request, work)

    async def stream(
        self,
        events: Events,
        *,
        error_body: Callable[[ErrorBody], ErrorBody] | None = None,
        empty_chunk: bytes | None = None,
    ) -> EventStream:
        """See `event_stream`."""
        config = self.front.config
        return await event_stream(self.request, events, config, error_body=error_body, empty_chunk=empty_chunk)


# Coroutines, although they wait for nothing: FastAPI calls plain functions in a thread.
async def front_of(request: Request) -> Front:
    front: Front = request.app.front
    return front


async def context_of(request: Request) -> Context:
    return Context(request, request.app.front)


FrontDep = Annotated[Front, Depends(front_of)]
ContextDep = Annotated[Context, Depends(context_of)]
