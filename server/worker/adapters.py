"""Adapters that a worker serves beside its model: read, fitted to its runner, described for the front."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from server.config import ModelConfig
from server.engine import adapters
from server.engine.model_runner import ModelRunner
from server.errors import ConfigurationError
from server.models import describe
from server.models.adapter_files import digest_of, read_changes
from server.models.folder import ModelFolder, look
from server.models.loader import LoadedModel, generation_defaults
from server.models.module import read_module
from server.models.tokenizer_files import has_tokenizer, load_tokenizer, tokenizer_files
from server.modules.adapted import NotShared
from server.native.adapted import Deltas
from server.protocol import SharedAdapter

log = logging.getLogger("sluice.engine")


@dataclass
class Shared:
    """The adapters of one worker."""

    deltas: dict[str, Deltas] = field(default_factory=dict)
    """By digest."""
    facts: list[SharedAdapter] = field(default_factory=list)
    """Of all that were asked for."""


def share(models: Sequence[ModelConfig], loaded: LoadedModel, runner: ModelRunner, *, deterministic: bool) -> Shared:
    """Those of ``models`` that can be served by ``runner``; the facts say why others cannot."""
    found, base = Shared(), _Base(loaded)
    for model in models:
        try:
            if deterministic and not runner.is_row_invariant:
                raise NotShared("deterministic is set, and products here have no kernels of ours")
            deltas, facts = base.read(model, runner)
        except (NotShared, ConfigurationError) as error:
            log.info("model %s gets a worker of its own: %s", model.name, error)
            found.facts.append(SharedAdapter(name=model.name, problem=str(error)))
        else:
            found.deltas[facts.digest] = deltas
            found.facts.append(facts)
    return found


class _Base:
    """What adapters of one model are read against."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._skeleton: PreTrainedModel | None = None
        self._tokenizer: Any = None

    def read(self, model: ModelConfig, runner: ModelRunner) -> tuple[Deltas, SharedAdapter]:
        """Raises `NotShared`, or ConfigurationError where the folder cannot be served at all."""
        loaded, folder = self._loaded, look(model)
        folder.check_files()
        if folder.adapter is None or folder.task != loaded.task:
            raise NotShared(f"its task is {folder.task}, and that of its base {loaded.task}")
        digest = digest_of(folder.path)
        changes = read_changes(self._empty_module(folder), folder.adapter)
        deltas = adapters.fit(runner, changes)
        tokenizer = self._read_tokenizer(folder)
        files = tokenizer_files(tokenizer)
        if files.tokenizer_json != loaded.tokenizer.tokenizer_json:
            raise NotShared("its tokenizer is not that of its base")
        return deltas, SharedAdapter(
            name=model.name,
            digest=digest,
            num_parameters=sum(change.num_parameters for change in changes.values()),
            num_bytes=deltas.num_bytes,
            tokenizer=None if files == loaded.tokenizer else files,
            generation_config=generation_defaults(folder.path, loaded.module, tokenizer, loaded.task),
            attribution=describe.attribution_of(*dict.fromkeys((folder.path, folder.weights))),
        )

    def _empty_module(self, folder: ModelFolder) -> PreTrainedModel:
        if self._skeleton is None:
            self._skeleton = read_module(
                folder.weights, folder.task, None, self._loaded.module.dtype, with_weights=False
            )
        return self._skeleton

    def _read_tokenizer(self, folder: ModelFolder) -> Any:
        """The adapter's own, else its base's."""
        if has_tokenizer(folder.path):
            return load_tokenizer(folder.path)
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(folder.weights)
        return self._tokenizer
