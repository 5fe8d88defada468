"""``/admin/adapters``, and vLLM's two routes: adapters that are loaded and unloaded while the server runs.

These routes exist where the setting ``adapters`` names a folder. Where there are API keys they take one with the scope
admin, else they answer clients on this machine.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from fastapi import Depends, Response

from server.adapter_errors import AdapterForbidden
from server.api.bodies.fields import LenientModel
from server.api.bodies.router import DialectRouter
from server.api.bodies.schemas import StrictModel
from server.api.context import Context, ContextDep
from server.api.http.dialect import Dialect
from server.serving.adapter_loading import AdapterLoader
from server.serving.registry import Served


class Admin(Dialect):
    """Errors in the server's own shape."""

    has_status_routes = False


class VllmAdmin(Admin):
    """As vLLM answers where adapters are changed."""

    names_unknown_fields = True
    status_of_invalid = 400


PATH = "/admin/adapters"


async def only_administrators(context: ContextDep) -> None:
    """Raises AdapterForbidden. Keys have been checked before, where there are any."""
    if context.front.has_keys:
        return
    client = context.request.client
    if client is None or not _is_loopback(client.host):
        raise AdapterForbidden("Without API keys, adapters can be changed only from the machine of the server.")


router = DialectRouter(Admin(), "admin")
vllm_router = DialectRouter(VllmAdmin(), "admin")
GUARDED: dict[str, Any] = {"response_model": None, "dependencies": [Depends(only_administrators)]}


class LoadBody(StrictModel):
    """Body of ``POST /admin/adapters``."""

    name: str
    """What clients send in model. It may be the name of a loaded adapter, which is replaced."""
    path: str
    """A folder in the folder of the setting adapters."""
    model: str | None = None
    """The served model that the adapter belongs to; without it the one whose folder the adapter names."""


class LoraBody(LenientModel):
    """Body of ``POST /v1/load_lora_adapter``."""

    lora_name: str
    """What clients send in model."""
    lora_path: str
    """A folder in the folder of the setting adapters."""
    load_inplace: bool | None = None
    """Replace a loaded adapter of this name."""
    base_model_name: str | None = None
    """The served model that the adapter belongs to."""


class UnloadBody(LenientModel):
    """Body of ``POST /v1/unload_lora_adapter``."""

    lora_name: str


@router.post(PATH, **GUARDED)
async def load(body: LoadBody, context: ContextDep) -> dict[str, Any]:
    """Load an adapter and serve it under a name. Requests that run keep the version that they began with."""
    loader = _loader(context)
    return _described(await loader.load(body.name, body.path, body.model), context)


@router.get(PATH, **GUARDED)
async def listed(context: ContextDep) -> dict[str, Any]:
    """All adapters that share the worker of their base."""
    loader = _loader(context)
    return {"adapters": [_described(loader.find(name), context) for name in loader.names]}


@router.delete(PATH + "/{name:path}", **GUARDED)
async def unload(name: str, context: ContextDep) -> dict[str, Any]:
    """Serve the adapter no more. Requests that run go on."""
    loader = _loader(context)
    described = _described(loader.find(name), context)
    await loader.unload(name)
    return described


@vllm_router.post("/v1/load_lora_adapter", **GUARDED)
async def load_lora(body: LoraBody, context: ContextDep) -> Response:
    """As ``POST /admin/adapters``, in vLLM's shape."""
    loader = _loader(context)
    await loader.load(body.lora_name, body.lora_path, body.base_model_name, replaces=bool(body.load_inplace))
    return Response(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@vllm_router.post("/v1/unload_lora_adapter", **GUARDED)
async def unload_lora(body: UnloadBody, context: ContextDep) -> Response:
    """As ``DELETE /admin/adapters/{name}``, in vLLM's shape."""
    await _loader(context).unload(body.lora_name)
    return Response(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def _loader(context: Context) -> AdapterLoader:
    context.record.route = context.request.scope["route"].path
    return context.front.adapters


def _described(served: Served, context: Context) -> dict[str, Any]:
    assert served.adapter is not None
    facts, client = served.adapter.facts, context.registry.clients[served.name]
    return {
        "name": served.name,
        "model": client.model.name,
        "digest": facts.digest,
        "state": client.adapters.state(facts.digest),
        "bytes": facts.num_bytes,
        "num_parameters": facts.num_parameters,
    }


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
