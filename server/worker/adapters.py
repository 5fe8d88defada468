"""Adapters that a worker serves beside its model: read, packed for its engine, described for the front."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic

from server.adapter_table import AdapterTable, HeldT, ReadAdapter, too_large
from server.config import ModelConfig
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
    sources: Sequence[LoadAdapter], model: ModelConfig, reader: Reader[HeldT], attempt: Callable[[HeldT], None]
) -> tuple[AdapterTable[HeldT], list[SharedAdapter]]:
    """The adapters that are served beside ``model``, and what was found of those that were new.

    ``attempt`` tries one in steps and raises `NotShared`. The facts of one that cannot be served say why.
    """
    max_bytes = int(model.max_adapter_gib * GIB)
    table, facts = AdapterTable(reader.read, max_bytes=max_bytes), []
    for source in sources:
        if source.is_known:
            table.add(source)
            continue
        try:
            found = reader.read(source)
            if found.adapter.num_bytes > max_bytes:
                raise NotShared(too_large(found.adapter, max_bytes))
            attempt(found.adapter)
        except NotShared as problem:
            log.info("model %s gets a worker of its own: %s", source.model.name, problem)
            facts.append(SharedAdapter(name=source.model.name, problem=str(problem)))
        else:
            table.put(source, found.adapter)
            facts.append(found.facts)
    return table, facts


class Reader(ABC, Generic[HeldT]):
    """What adapters of one model are read against."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._tokenizer: Any = None

    def read(self, source: LoadAdapter) -> ReadAdapter[HeldT]:
        """Raises `NotShared`, whatever the folder holds."""
        try:
            return self._read(source)
        except ConfigurationError as error:
            raise NotShared(str(error)) from error
        except LOAD_FAILURES as error:
            reason = "memory ran out" if is_memory_error(error) else f"{type(error).__name__}: {error}"
            raise NotShared(f"its files cannot be read ({' '.join(reason.split())[:300]})") from error

    def _read(self, source: LoadAdapter) -> ReadAdapter[HeldT]:
        self._check_can_share()
        if source.parts:
            return self._sum(source)
        folder = look(source.model)
        folder.check_files()
        tokenizer = self._read_tokenizer(folder)
        adapter, fields = self._fit(source.model, folder, tokenizer)
        files = tokenizer_files(tokenizer)
        facts = SharedAdapter(
            name=source.model.name,
            digest=source.digest,
            num_bytes=adapter.num_bytes,
            tokenizer=None if files == self._loaded.tokenizer else files,
            attribution=describe.attribution_of(*dict.fromkeys((folder.path, folder.weights))),
            **fields,
        )
        return ReadAdapter(adapter, facts)

    @abstractmethod
    def _check_can_share(self) -> None:
        """Raises `NotShared` where the model has no adapters."""

    def _sum(self, source: LoadAdapter) -> ReadAdapter[HeldT]:
        """Of its parts; raises as `_read`."""
        raise NotShared(f"{source.model.name} is a sum, and adapters of encoders have none")

    @abstractmethod
    def _fit(self, model: ModelConfig, folder: ModelFolder, tokenizer: Any) -> tuple[HeldT, dict[str, Any]]:
        """What the engine needs of the adapter, and the other fields of its facts; raises as `_read`."""

    def _read_tokenizer(self, folder: ModelFolder) -> Any:
        """The adapter's own, else its base's."""
        if has_tokenizer(folder.path):
            return load_tokenizer(folder.path)
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(folder.weights)
        return self._tokenizer


class DecoderReader(Reader[FittedAdapter]):
    """Of a model that generates."""

    def __init__(self, loaded: LoadedModel, runner: ModelRunner, *, deterministic: bool) -> None:
        super().__init__(loaded)
        self._runner = runner
        self._deterministic = deterministic
        self._targets: Targets | None = None

    def _check_can_share(self) -> None:
        if self._deterministic and not self._runner.is_row_invariant:
            raise NotShared("deterministic is set, and products here have no kernels of ours")
        if not self._runner.parts:
            raise NotShared("models of this kind do not share their workers")

    def _fit(self, model: ModelConfig, folder: ModelFolder, tokenizer: Any) -> tuple[FittedAdapter, dict[str, Any]]:  # noqa: ARG002
        loaded = self._loaded
        if folder.adapter is None or folder.task != loaded.task:
            raise NotShared(f"its task is {folder.task}, and that of its base {loaded.task}")
        fitted, num_parameters = self._fitted(folder, folder.adapter)
        if tokenizer_files(tokenizer).tokenizer_json != loaded.tokenizer.tokenizer_json:
            raise NotShared("its tokenizer is not that of its base")
        return fitted, {
            "task": loaded.task,
            "architecture": loaded.architecture,
            "max_model_len": loaded.max_model_len,
            "num_parameters": num_parameters,
            "num_virtual_tokens": fitted.num_tokens if isinstance(fitted, Preamble) else 0,
            "generation_config": generation_defaults(folder.path, loaded.module, tokenizer, loaded.task),
        }

    def _sum(self, source: LoadAdapter) -> ReadAdapter[FittedAdapter]:
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
            name=name,
            digest=source.digest,
            task=self._loaded.task,
            architecture=self._loaded.architecture,
            max_model_len=self._loaded.max_model_len,
            num_parameters=num_parameters,
            num_bytes=deltas.num_bytes,
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
