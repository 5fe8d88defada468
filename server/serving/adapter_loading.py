"""Adapters that come, move and go while the server runs: from a folder that the operator named to a served name."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from pathlib import Path

import msgspec

from server import metrics
from server.adapter_errors import AdapterExists, AdapterForbidden, AdapterNotFound, AdapterRefused
from server.client.adapter_copies import CONFIG, NotCopied
from server.client.adapters import AdapterVersion, NotServed
from server.client.supervisor import Supervisor
from server.client.worker_client import WorkerClient
from server.config import ModelConfig
from server.errors import ConfigurationError, InvalidParameter, ModelNotFound, SluiceError
from server.protocol import Ready
from server.sentences import echo
from server.serving.adapters import MARK, shared_ready
from server.serving.encoder_client import ServedEncoder
from server.serving.registry import Registry, Served
from server.sharing import base_folder, is_of_encoder

MAX_NAME_CHARACTERS = 256

log = logging.getLogger("sluice.adapters")


class AdapterLoader:
    """The only one who changes what a running registry serves."""

    def __init__(self, registry: Registry, supervisor: Supervisor) -> None:
        self._registry = registry
        self._supervisor = supervisor
        self._root = None if registry.config.adapters is None else Path(registry.config.adapters)
        self._lock = asyncio.Lock()

    @property
    def names(self) -> list[str]:
        """Of the adapters that share a worker."""
        return [served.name for served in self._registry.all() if served.adapter is not None]

    def find(self, name: str) -> Served:
        """Raises AdapterNotFound."""
        if name not in self.names:
            there_are = f"Served: {', '.join(self.names)}." if self.names else "There are none."
            raise AdapterNotFound(f"There is no adapter {echo(name)}. {there_are}", param="name")
        return self._registry.find(name)

    async def load(self, name: str, path: str, base: str | None = None, *, replaces: bool = True) -> Served:
        """Serve the adapter in the folder ``path`` under ``name``, which may be another adapter's until then.

        ``base`` is the name of a served model; without one it is found. Requests that run are not touched.
        Raises SluiceError.
        """
        self._registry.all()
        root, folder = await asyncio.to_thread(self._folder, path)
        return await self.load_folder(name, folder, root, base, replaces=replaces)

    async def load_folder(
        self, name: str, folder: Path, root: Path, base: str | None = None, *, replaces: bool = True
    ) -> Served:
        """As `load`, of a folder in ``root``, which holds all its files."""
        _check_name(name)
        async with self._lock:
            self._check_free(name, replaces=replaces)
            client = self._host(name, folder, base)
            model = dataclasses.replace(client.model, name=name, path=str(folder), base=client.model.path, share="auto")
            served = await self._served(client, model, folder, root)
            metrics.add_adapter(name)
            self._registry.publish(served.model, client, served.served)
            log.info("adapter loaded", extra={"fields": {"model": name, "digest": served.version.digest}})
            return served.served

    async def unload(self, name: str) -> None:
        """Serve the name no more; requests that run go on. Raises AdapterNotFound."""
        async with self._lock:
            self.find(name)
            self._registry.withdraw(name)
            log.info("adapter unloaded", extra={"fields": {"model": name}})

    def _folder(self, path: str) -> tuple[Path, Path]:
        """The folder of the setting, and the one that ``path`` names in it."""
        if self._root is None:
            raise AdapterForbidden("The setting adapters names no folder: the server loads no adapters while it runs.")
        root = self._root.resolve()
        try:
            folder = (root / path).resolve()
            is_folder = folder.is_dir()
        except (OSError, ValueError, RuntimeError):
            raise InvalidParameter("path", path, "must be the path of a folder") from None
        if not folder.is_relative_to(root) or folder == root:
            raise AdapterForbidden(
                f"path is {echo(path)}: it must lie in the folder of the setting adapters.", param="path"
            )
        if not is_folder or not (folder / CONFIG).is_file():
            raise InvalidParameter(
                "path", path, f"must be a folder with {CONFIG} in the folder of the setting adapters"
            )
        return root, folder

    def _check_free(self, name: str, *, replaces: bool) -> None:
        if name not in self._registry.models:
            return
        if name not in self.names:
            raise AdapterExists(f"{echo(name)} is the name of a served model. Choose another name.", param="name")
        if not replaces:
            raise AdapterExists(
                f"The adapter {echo(name)} is loaded already. Set load_inplace to replace it.", param="name"
            )

    def _host(self, name: str, folder: Path, base: str | None) -> WorkerClient:
        """Whose worker is to serve the adapter."""
        config = self._registry.config
        hosts = [served for served in self._registry.all() if not served.adapter]
        names = [served.name for served in hosts]
        if base is not None:
            if base not in names:
                raise ModelNotFound(base, "adapters", names)
            return self._registry.clients[base]
        wanted = base_folder(ModelConfig(name=name, path=str(folder))).resolve()
        paths = {model.name: Path(model.path).resolve() for model in config.models if model.name in names}
        of_encoder = is_of_encoder(folder)
        alike = [served.name for served in hosts if isinstance(served, ServedEncoder) == of_encoder]
        found = [each for each, path in paths.items() if path == wanted] or alike
        if len(found) != 1:
            there_are = f"The models are {', '.join(names)}." if names else "This server has none."
            raise AdapterRefused(
                f"It is not clear which model the adapter belongs to: set model. {there_are}", param="model"
            )
        return self._registry.clients[found[0]]

    async def _served(self, client: WorkerClient, model: ModelConfig, folder: Path, root: Path) -> _New:
        try:
            source = await asyncio.to_thread(self._supervisor.copied, model, folder, root)
        except NotCopied as error:
            raise AdapterRefused(str(error), param="path") from error
        version = client.adapters.find(source.digest)
        if version is None:
            try:
                version = await client.load_adapter(source)
            except NotServed as error:
                raise AdapterRefused(_refusal(str(error), source.model, client.model), param="path") from error
        else:
            self._supervisor.copies.release(source.digest)
        if client.ready is None:
            raise SluiceError("The model is not loaded.")
        ready = shared_ready(client.ready, msgspec.structs.replace(version.facts, name=model.name))
        if version.facts.tokenizer is not None:
            await self._check_chat_template(model.name, ready)
        served = await asyncio.to_thread(self._registry.serve, source.model, client, ready, version)
        return _New(source.model, version, served)

    async def _check_chat_template(self, name: str, ready: Ready) -> None:
        try:
            await self._registry.services.templates.check_chat(name, ready.tokenizer)
        except ConfigurationError as error:
            raise AdapterRefused(str(error), param="path") from error


@dataclasses.dataclass(frozen=True)
class _New:
    model: ModelConfig
    version: AdapterVersion
    served: Served


def _refusal(problem: str, adapter: ModelConfig, base: ModelConfig) -> str:
    """Without paths: where files lie is for the operator."""
    for path, name in ((adapter.path, Path(adapter.path).name), (str(adapter.base), base.name), (base.path, base.name)):
        problem = problem.replace(path, name)
    return f"The adapter cannot be served beside {base.name}: {problem.rstrip('.')}."


def _check_name(name: str) -> None:
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable() or MARK in name:
        rule = f"must have 1 to {MAX_NAME_CHARACTERS} printable characters, without {MARK}"
        raise InvalidParameter("name", name, rule)
