"""What probes, dashboards and clients ask about the server itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from server import __version__, metrics
from server.api.context import Front, FrontDep
from server.availability_errors import Draining, EngineRestarting, QueueFull, Starting
from server.errors import SluiceError
from server.protocol import Ready
from server.serving.lifecycle import Lifecycle
from server.serving.registry import Registry

RETRY_S = 1.0
METRICS_THREAD = ThreadPoolExecutor(1, "metrics")
"""Of its own: the others may all be busy with long texts, and that is when somebody looks at the metrics."""


def check_started(lifecycle: Lifecycle) -> None:
    """Raise unless every model has been ready once."""
    if not lifecycle.is_loaded:
        raise Starting("The models are loading.", retry_after_s=RETRY_S)


def check_engines(front: Front) -> None:
    """Raise unless every worker can take work now."""
    check_started(front.lifecycle)
    if not front.supervisor.is_ready():
        raise EngineRestarting("A worker is restarting.", retry_after_s=RETRY_S)


def check_ready(front: Front) -> None:
    """Raise unless new work should be sent here."""
    if front.lifecycle.is_draining:
        raise Draining("The server is stopping.", retry_after_s=RETRY_S)
    check_engines(front)
    mark = front.config.unready_queue_percent
    if mark and 100 * front.registry.fullness >= mark:
        raise QueueFull(f"A model's queue is at least {mark}% full (unready_queue_percent).", retry_after_s=RETRY_S)


async def livez(front: FrontDep) -> dict[str, str]:
    """200 as long as the process can do its work or restore it: restart the server where this fails."""
    if not front.supervisor.is_live():
        raise SluiceError("The workers cannot be restarted.")
    return {"status": "live"}


async def readyz(front: FrontDep) -> dict[str, str]:
    """200 if new requests should be sent here: not while starting, restarting a worker or draining.

    Nor while a queue is fuller than the setting `unready_queue_percent`.
    """
    check_ready(front)
    return {"status": "ready"}


async def startupz(front: FrontDep) -> dict[str, str]:
    """200 once every model has been loaded."""
    check_started(front.lifecycle)
    return {"status": "started"}


async def health(front: FrontDep) -> dict[str, str]:
    """200 if every model's worker is up; while draining too."""
    check_engines(front)
    return {"status": "healthy"}


async def info(front: FrontDep) -> dict[str, Any]:
    """The models by task, their limits, and the server's."""
    registry, config = front.registry, front.config
    models = [_describe(name, registry) for name in registry.models]
    first = registry.ready_models.get(config.models[0].name)
    return {
        "model_id": config.models[0].name,
        "max_input_tokens": first.max_model_len if first else None,
        "version": __version__,
        "models": models,
        "tasks": registry.names_by_task(),
        "templates": registry.services.templates.describe(),
        "topics": registry.services.topics.describe(),
        "limits": {
            "max_body_bytes": config.max_body_bytes,
            "max_batch_inputs": config.max_batch_inputs,
            "max_encode_inputs": config.max_encode_inputs,
            "max_queued_requests": config.max_queued_requests,
            "max_queued_tokens": config.max_queued_tokens,
            "default_max_new_tokens": config.default_max_new_tokens,
        },
        "attribution": [model.attribution for model in registry.ready_models.values() if model.attribution],
    }


def _describe(name: str, registry: Registry) -> dict[str, Any]:
    ready = registry.ready_models.get(name)
    state = registry.states()[name]
    if ready is None:
        return {"name": name, "state": state}
    learned = registry.clients[name].token_budget
    budget = {} if learned is None else {"token_budget": learned}
    return {
        "name": name,
        "state": state,
        **_facts(ready),
        **budget,
        **_sharing(name, registry, ready),
        **registry.describe(name),
    }


def _sharing(name: str, registry: Registry, ready: Ready) -> dict[str, Any]:
    """Of an adapter in the worker of another model: that model, its version, and its own weights there."""
    client = registry.clients[name]
    if client.model.name == name:
        return {}
    (facts,) = ready.adapters
    return {
        "shares_worker_of": client.model.name,
        "adapter_digest": facts.digest,
        "adapter_bytes": facts.num_bytes,
        "adapter_state": client.adapters.state(facts.digest),
    }


def _facts(ready: Ready) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "task": ready.task,
        "architecture": ready.architecture,
        "device": ready.device,
        "dtype": ready.dtype,
        "dtype_reason": ready.dtype_reason,
        "executor": ready.executor,
        "attention": ready.attention,
        "kernels": ready.kernels,
        "batching": ready.batching,
        "max_input_tokens": ready.max_model_len,
        "max_running": ready.max_running,
        "max_batch_tokens": ready.max_batch_tokens,
        "num_parameters": ready.num_parameters,
        "weight_bytes": ready.weight_bytes,
        "kv_cache_bytes": ready.kv_cache_bytes,
        "labels": ready.labels,
        "attribution": ready.attribution,
        "quantization_kl": ready.quantization_kl,
        "kv_dtype": ready.dtype if ready.kv_dtype == "auto" else ready.kv_dtype,
        "kv_cache_kl": ready.kv_cache_kl,
        "reproducible": ready.reproducible,
        "reproducible_reason": ready.reproducible_reason,
    }
    return {name: value for name, value in facts.items() if value is False or value not in (None, [], 0)}


async def version() -> dict[str, str]:
    """The server's version."""
    return {"version": __version__}


async def load(front: FrontDep) -> dict[str, int]:
    """How many requests for work are being answered."""
    return {"server_load": front.lifecycle.num_active}


async def render_metrics(request: Request, front: FrontDep) -> Response:
    """The metrics in Prometheus' text format, or OpenMetrics where the client asks for it."""
    accept = request.headers.get("accept", "")
    metrics.FRONT_TASKS.set(len(asyncio.all_tasks()))
    render = partial(metrics.render, accept, vllm_names=front.config.vllm_metrics)
    content, content_type = await asyncio.get_running_loop().run_in_executor(METRICS_THREAD, render)
    return Response(content, headers={"Content-Type": content_type, "Cache-Control": "no-store"})


ENDPOINTS: dict[str, Callable[..., Any]] = {
    "/livez": livez,
    "/readyz": readyz,
    "/startupz": startupz,
    "/health": health,
    "/info": info,
    "/version": version,
    "/load": load,
    "/metrics": render_metrics,
}


def status_router(task_paths: list[str]) -> APIRouter:
    """The routes; /health and /info also below each task's, where Hugging Face's client looks."""
    router = APIRouter(tags=["status"])
    for path, endpoint in ENDPOINTS.items():
        router.add_api_route(path, endpoint, methods=["GET"], response_model=None)
    for path in task_paths:
        for suffix in ("/health", "/info"):
            router.add_api_route(
                path + suffix,
                ENDPOINTS[suffix],
                methods=["GET"],
                response_model=None,
                include_in_schema=False,
            )
    return router
