"""Adapters that a worker serves beside its model: read, packed for its runner, described for the front."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from server.config import ModelConfig
from server.engine.adapter_trial import try_all_steps
from server.engine.adapters import AdapterTable, ReadAdapter, too_large
from server.engine.model_runner import ModelRunner
from server.engine.preamble import FittedAdapter, Preamble
from server.engine.preamble_fitting import fitted_preamble
from server.errors import ConfigurationError
from server.models import describe
from server.models.adapter import Adapter
from server.models.adapter_files import Targets, read_changes
from server.models.folder import ModelFolder, look
from server.models.loader import LoadedModel, generation_defaults
from server.models.module import LOAD_FAILURES, read_module
from server.models.tokenizer_files import has_tokenizer, load_tokenizer, tokenizer_files
from server.models.virtual_tokens import read_virtual_tokens
from server.modules.adapted import NotShared, packed_changes
from server.modules.mixture import weighted_sum
from server.out_of_memory import is_memory_error
from server.protocol import LoadAdapter, SharedAdapter

GIB = 1024**3

log = logging.getLogger("sluice.engine")


def share(
    sources: Sequence[LoadAdapter], model: ModelConfig, loaded: LoadedModel, runner: ModelRunner
) -> tuple[AdapterTable, list[SharedAdapter]]:
    """The adapters that ``runner`` serves beside its ``model``, and what was found of those that were new.

    The facts of one that cannot be served there say why.
    """
    reader = Reader(loaded, runner, deterministic=model.deterministic)
    max_bytes = int(model.max_adapter_gib * GIB)
    table, facts = AdapterTable(reader.read, max_bytes=max_bytes), []
    for source in sources:
        if source.is_known:
            table.add(source)
            continue
        try:
            adapter = reader.read(source)
            if adapter.fitted.num_bytes > max_bytes:
                raise NotShared(too_large(adapter.fitted, max_bytes))
            try_all_steps(runner, adapter.fitted)
        except NotShared as problem:
            log.info("model %s gets a worker of its own: %s", source.model.name, problem)
            facts.append(SharedAdapter(name=source.model.name, problem=str(problem)))
        else:
            table.put(source, adapter.fitted)
            facts.append(adapter.facts)
    return table, facts


class Reader:
    """What adapters of one model are read against."""

    def __init__(self, loaded: LoadedModel, runner: ModelRunner, *, deterministic: bool) -> None:
        self._loaded = loaded
        self._runner = runner
        self._deterministic = deterministic
        self._targets: Targets | None = None
        self._tokenizer: Any = None

    def read(self, source: LoadAdapter) -> ReadAdapter:
        """Raises `NotShared`, whatever the folder holds."""
        try:
            return self._read(source)
        except ConfigurationError as error:
            raise NotShared(str(error)) from error
        except LOAD_FAILURES as error:
            reason = "memory ran out" if is_memory_error(error) else f"{type(error).__name__}: {error}"
            raise NotShared(f"its files cannot be read ({' '.join(reason.split())[:300]})") from error

    def _read(self, source: LoadAdapter) -> ReadAdapter:
        if self._deterministic and not self._runner.is_row_invariant:
            raise NotShared("deterministic is set, and products here have no kernels of ours")
        if not self._runner.parts:
            raise NotShared("models of this kind do not share their workers")
        if source.parts:
            return self._sum(source)
        loaded, folder = self._loaded, look(source.model)
        folder.check_files()
        if folder.adapter is None or folder.task != loaded.task:
            raise NotShared(f"its task is {folder.task}, and that of its base {loaded.task}")
        fitted, num_parameters = self._fitted(folder, folder.adapter)
        tokenizer = self._read_tokenizer(folder)
        files = tokenizer_files(tokenizer)
        if files.tokenizer_json != loaded.tokenizer.tokenizer_json:
            raise NotShared("its tokenizer is not that of its base")
        facts = SharedAdapter(
            name=source.model.name,
            digest=source.digest,
            num_parameters=num_parameters,
            num_bytes=fitted.num_bytes,
            num_virtual_tokens=fitted.num_tokens if isinstance(fitted, Preamble) else 0,
            tokenizer=None if files == loaded.tokenizer else files,
            generation_config=generation_defaults(folder.path, loaded.module, tokenizer, loaded.task),
            attribution=describe.attribution_of(*dict.fromkeys((folder.path, folder.weights))),
        )
        return ReadAdapter(fitted, facts)

    def _sum(self, source: LoadAdapter) -> ReadAdapter:
        """With the tokenizer and the defaults of the base."""
        parts = []
        for part in source.parts:
            folder = look(part.model)
            if folder.adapter is None or folder.adapter.has_virtual_tokens:
                raise NotShared(f"{part.model.name} has virtual tokens")
            parts.append((part.weight, read_changes(self._targets_in(folder), folder.adapter)))
        changes = weighted_sum(parts)
        deltas = packed_changes(self._runner.parts, changes)
        num_parameters = sum(change.num_parameters for change in changes.values())
        name = source.model.name
        facts = SharedAdapter(
            name=name, digest=source.digest, num_parameters=num_parameters, num_bytes=deltas.num_bytes
        )
        return ReadAdapter(deltas, facts)

    def _fitted(self, folder: ModelFolder, adapter: Adapter) -> tuple[FittedAdapter, int]:
        """What the runner computes, and the number of its parameters."""
        if not adapter.has_virtual_tokens:
            changes = read_changes(self._targets_in(folder), adapter)
            num_parameters = sum(change.num_parameters for change in changes.values())
            return packed_changes(self._runner.parts, changes), num_parameters
        virtual = read_virtual_tokens(adapter)
        if virtual.num_tokens >= self._loaded.max_model_len:
            raise NotShared(
                f"it has {virtual.num_tokens} virtual tokens, and the model takes {self._loaded.max_model_len} in all"
            )
        width = self._targets_in(folder).skeleton.get_input_embeddings().weight.shape[1]
        if virtual.embeddings_ND is not None and virtual.embeddings_ND.shape[1] != width:
            raise NotShared(
                f"its embeddings have {virtual.embeddings_ND.shape[1]} values, and those of the base {width}"
            )
        return fitted_preamble(self._runner, virtual.embeddings_ND, virtual.keys_values_L2HNK), virtual.num_parameters

    def _targets_in(self, folder: ModelFolder) -> Targets:
        if self._targets is None:
            dtype = self._loaded.module.dtype
            self._targets = Targets(read_module(folder.weights, folder.task, None, dtype, with_weights=False))
        return self._targets

    def _read_tokenizer(self, folder: ModelFolder) -> Any:
        """The adapter's own, else its base's."""
        if has_tokenizer(folder.path):
            return load_tokenizer(folder.path)
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(folder.weights)
        return self._tokenizer
