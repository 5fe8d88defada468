"""Weighted sums of adapters: what a request asks for becomes an adapter of the base's worker, kept for others."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from server.adapter_errors import AdapterRefused, AdapterVersionNotFound
from server.client.adapters import AdapterVersion, NotServed
from server.client.worker_client import WorkerClient
from server.errors import ConflictingParameters, InvalidParameter, ModelNotFound
from server.protocol import LoadAdapter, WeightedAdapter
from server.serving.generator import ServedGenerator
from server.serving.options.table import OPTIONS
from server.serving.options.types import AdapterWeight
from server.serving.registry import Registry

FIELD = "adapters"
MAX_KEPT = 64
"""Sums that stay ready for further requests, those used last."""


class Mixtures:
    """All sums of adapters of a registry's models."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._made: OrderedDict[tuple[str, str], ServedGenerator] = OrderedDict()
        """By name of the base, and digest of the sum."""

    async def find(self, host: ServedGenerator, wanted: Sequence[AdapterWeight]) -> ServedGenerator:
        """What serves ``host`` with the sum of these adapters.

        Raises InvalidParameter, ModelNotFound, ConflictingParameters, AdapterRefused, AdapterQuarantined.
        """
        range_ = OPTIONS[FIELD].range
        assert range_ is not None
        for wrong, rule in range_.findings(wanted, host.ready):
            raise InvalidParameter(FIELD, wrong, rule)
        if host.adapter is not None:
            raise ConflictingParameters(FIELD, "model", "model must be the base of the adapters")
        versions = [(self._version(host, entry.name), entry.weight) for entry in wanted]
        parts = [(version, weight) for version, weight in versions if weight]
        if not parts:
            return host
        if len(parts) == 1 and parts[0][1] == 1.0:
            return self._registry.get(ServedGenerator, next(entry.name for entry in wanted if entry.weight))
        digest = _digest(parts)
        served = self._made.get((host.name, digest))
        if served is None or host.worker.adapters.find(digest) is None:
            served = await self._serve(host, digest, parts)
        self._made[host.name, digest] = served
        self._made.move_to_end((host.name, digest))
        while len(self._made) > MAX_KEPT:
            self._made.popitem(last=False)
        return served

    def _version(self, host: ServedGenerator, name: str) -> AdapterVersion:
        try:
            served = self._registry.get(ServedGenerator, name)
        except (ModelNotFound, AdapterVersionNotFound) as error:
            error.field = FIELD
            raise
        if served.adapter is None or served.worker is not host.worker:
            raise InvalidParameter(FIELD, name, f"must name adapters that share the worker of {host.name}")
        return served.adapter

    async def _serve(
        self, host: ServedGenerator, digest: str, parts: Sequence[tuple[AdapterVersion, float]]
    ) -> ServedGenerator:
        client, model = host.worker, self._registry.models[host.name]
        sources = tuple(WeightedAdapter(_source(client, version).model, weight) for version, weight in parts)
        try:
            total = await client.load_adapter(LoadAdapter(digest, model, parts=sources))
        except NotServed as problem:
            raise AdapterRefused(f"The adapters cannot be added: {problem}.", param=FIELD) from problem
        total.parts = [version for version, _ in parts]
        ready = msgspec.structs.replace(host.ready, adapters=[total.facts])
        served = await asyncio.to_thread(self._registry.serve, model, client, ready, total)
        assert isinstance(served, ServedGenerator)
        return served


def _digest(parts: Sequence[tuple[AdapterVersion, float]]) -> str:
    words = [f"{version.digest} {weight!r}" for version, weight in parts]
    return hashlib.blake2b("\n".join(words).encode(), digest_size=16).hexdigest()


def _source(client: WorkerClient, version: AdapterVersion) -> LoadAdapter:
    source = client.adapters.source(version.digest)
    if source is None:
        raise AdapterRefused("An adapter was unloaded meanwhile. Send the request again.", param=FIELD)
    return source
