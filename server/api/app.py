"""The web application: routes, middleware and error replies put together."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from server import __version__
from server.api import adapters, page, templates
from server.api.bodies.router import DialectRouter
from server.api.context import Front
from server.api.dialects import rerank, tei
from server.api.dialects.anthropic import route as anthropic
from server.api.dialects.hf import summarize, zero_shot
from server.api.dialects.libretranslate import languages
from server.api.dialects.libretranslate.dialect import MISSING
from server.api.dialects.openai import chat, completions, embeddings, models, responses
from server.api.dialects.vllm import classify as openai_classify
from server.api.dialects.vllm import score, tokenize
from server.api.http import error_replies, keys
from server.api.http.access import Access
from server.api.http.client_address import TrustedProxies
from server.api.http.dialect import Dialect
from server.api.http.idempotency import Idempotency
from server.api.http.middleware import BodyGate, RequestContext
from server.api.openapi.document import document
from server.api.status import ENDPOINTS, status_router
from server.client.supervisor import Supervisor
from server.config import ServeConfig
from server.serving.adapter_loading import AdapterLoader
from server.serving.adapter_watch import AdapterWatch
from server.serving.lifecycle import Lifecycle
from server.serving.mixtures import Mixtures
from server.serving.registry import Registry
from server.tasks import TASKS

Routers = tuple[tuple[str | None, DialectRouter], ...]
ROUTERS: Routers = (
    *((name, resolve_name(task.router)) for name, task in TASKS.items()),
    (None, templates.router),
    ("classify", tei.classify_router),
    ("classify", zero_shot.router),
    ("classify", rerank.router),
    ("classify", rerank.v1_router),
    ("classify", score.router),
    ("classify", score.v1_router),
    ("seq2seq", summarize.router),
    ("seq2seq", languages.router),
    (None, tokenize.router),
    (None, models.router),
    ("embed", embeddings.router),
    ("classify", openai_classify.router),
    ("generate", chat.router),
    ("generate", completions.router),
    ("generate", responses.router),
    ("generate", anthropic.router),
)
"""Every way to ask for something, and the task it asks of, where all of its routes ask of one."""
OF_ADAPTERS: Routers = ((None, adapters.router), (None, adapters.vllm_router))
"""Where adapters may be loaded while the server runs."""
DOCS = ("/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect")


class Application(FastAPI):
    """Sluice's routes over what stands behind them, with a documentation of its own."""

    def __init__(self, front: Front) -> None:
        super().__init__(
            title="Sluice",
            version=__version__,
            description="One server for fine-tuned language models.",
            redirect_slashes=False,
        )
        self.front = front

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = document(self, _dialects((*ROUTERS, *OF_ADAPTERS)), has_keys=self.front.has_keys)
        return self.openapi_schema


def build_app(config: ServeConfig, supervisor: Supervisor) -> Application:
    """The application; `Registry.load` and `Lifecycle.is_loaded` make it serve once the workers are ready.

    Raises ConfigurationError for keys that cannot be read.
    """
    api_keys = keys.load(config.api_keys_file)
    registry = Registry(config, supervisor)
    loader = AdapterLoader(registry, supervisor)
    app = Application(
        Front(
            config=config,
            supervisor=supervisor,
            registry=registry,
            adapters=loader,
            mixtures=Mixtures(registry),
            watch=None if config.watched_adapters is None else AdapterWatch(loader, Path(config.watched_adapters)),
            lifecycle=Lifecycle(),
            has_keys=bool(api_keys),
        )
    )
    routers = ROUTERS if config.adapters is None else (*ROUTERS, *OF_ADAPTERS)
    tasks = _task_routes(routers)
    for _, router in routers:
        app.include_router(router)
    if config.page:
        app.include_router(page.router)
    dialects = _dialects(routers)
    with_status = [path for path in tasks if path != "/" and dialects[path].has_status_routes]
    app.include_router(status_router(with_status))
    error_replies.install(app)
    # The last one added is the outermost.
    app.add_middleware(Idempotency, paths=frozenset(tasks))
    app.add_middleware(BodyGate, paths=frozenset(tasks), max_bytes=config.max_body_bytes)
    if api_keys:
        app.add_middleware(Access, keys=api_keys)
    if config.cors_origins is not None:
        _allow_origins(app, config.allowed_origins)
    app.add_middleware(
        RequestContext,
        lifecycle=app.front.lifecycle,
        task_routes=tasks,
        dialects={**MISSING, **dialects},
        quiet_routes=_quiet_routes(with_status),
        proxies=TrustedProxies(config.proxy_networks or []),
    )
    return app


def _allow_origins(app: FastAPI, origins: list[str]) -> None:
    """Outside of the keys: a browser asks first without any. No cookies are taken, so there are no credentials."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["X-Request-Id", "Retry-After", "x-should-retry", "x-ignored-fields", "Idempotency-Replayed"],
        max_age=600,
    )


def _task_routes(routers: Routers) -> dict[str, str | None]:
    """The paths that take work, and whose it is where the path says so."""
    return {path: task for task, router in routers for path in router.work_paths}


def _dialects(routers: Routers) -> dict[str, Dialect]:
    """Of every path, as the document writes it."""
    return {path: router.dialect for _, router in routers for path in router.paths}


def _quiet_routes(task_paths: list[str]) -> frozenset[str]:
    below_tasks = (path + suffix for path in task_paths for suffix in ("/health", "/info"))
    return frozenset((*ENDPOINTS, *DOCS, *page.PATHS, *below_tasks))
