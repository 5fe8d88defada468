"""Adapters of an encoder, which bring heads of their own: classifiers and taggers of any labels beside any model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from server.config import ModelConfig
from server.encoder.adapter_heads import BaseHead, Head
from server.encoder.forward import Forward
from server.encoder.mixed import EncoderAdapter, attempt, ends_with_core
from server.models import describe
from server.models.adapter import Adapter
from server.models.adapter_files import Targets, read_weights
from server.models.embedder import Embedder
from server.models.folder import ModelFolder
from server.models.lengths import longest_input
from server.models.loader import LoadedModel, embedding_of
from server.models.module import read_module
from server.modules.adapted import LayerChange, NotShared, packed_changes
from server.protocol import Encode
from server.tasks import TASKS
from server.worker.adapters import Reader


class EncoderReader(Reader[EncoderAdapter]):
    """Of a model that encodes."""

    def __init__(self, loaded: LoadedModel, forward: Forward, sample: Sequence[Encode]) -> None:
        """``sample`` is run once."""
        super().__init__(loaded)
        self._forward = forward
        self._problem = _problem(forward, sample)
        self._base_heads: dict[tuple[str, tuple[str, ...]], BaseHead] = {}
        """By task, and by what adapters bring in place of the base's."""

    def _check_can_share(self) -> None:
        if self._problem is not None:
            raise NotShared(self._problem)

    def _fit(self, model: ModelConfig, folder: ModelFolder, tokenizer: Any) -> tuple[EncoderAdapter, dict[str, Any]]:
        forward, adapter, task = self._forward.flat, folder.adapter, folder.task
        assert forward is not None, "`_problem` has asked for it"
        if adapter is None or TASKS[task].reads not in ("text", "tokens"):
            raise NotShared(f"its task is {task}")
        skeleton = read_module(folder.weights, task, adapter, torch.float32, with_weights=False)
        weights = read_weights(Targets(skeleton), adapter)
        num_tokens = longest_input(model, skeleton, tokenizer, task, folder.recipe)
        if num_tokens > self._loaded.max_text_len:
            raise NotShared(f"it takes {num_tokens} tokens, and its base {self._loaded.max_text_len}")
        if len(tokenizer) > skeleton.get_input_embeddings().weight.shape[0]:
            raise NotShared("its tokenizer has more tokens than its base")
        of_head, of_core = _divided(skeleton, weights.changes)
        module: Any = skeleton if folder.recipe is None else Embedder(skeleton, folder.recipe.pooling)
        head = Head(module, weights.saved, of_head, self._base_head(folder, adapter))
        hidden_size = skeleton.config.get_text_config().hidden_size
        deltas = packed_changes(forward.parts, of_core) if of_core else None
        return EncoderAdapter(task=task, head=head.build(hidden_size), deltas=deltas), {
            "task": task,
            "architecture": type(skeleton).__name__,
            "max_model_len": num_tokens,
            "labels": describe.labels_of(skeleton.config, task),
            "problem_type": describe.problem_type_of(skeleton.config, task),
            "embedding": None if folder.recipe is None else embedding_of(folder.recipe, skeleton.config),
            "num_parameters": weights.num_parameters,
        }

    def _base_head(self, folder: ModelFolder, adapter: Adapter) -> BaseHead:
        key = (folder.task, adapter.modules_to_save)
        if key not in self._base_heads:
            self._base_heads[key] = BaseHead(lambda: _values_behind_core(folder, adapter))
        return self._base_heads[key]


def try_adapter(forward: Forward, sample: Sequence[Encode], adapter: EncoderAdapter) -> None:
    """In steps with ``sample``. Raises `NotShared`."""
    assert forward.flat is not None, "`_problem` has asked for it"
    attempt(forward.flat, adapter, sample)


def _problem(forward: Forward, sample: Sequence[Encode]) -> str | None:
    """Why texts cannot have adapters in this model's steps."""
    if forward.flat is None or not forward.flat.parts:
        return f"texts are batched {forward.batching}, by the executor {forward.name}"
    return None if ends_with_core(forward.flat, sample) else "its base computes more after its layers"


def _values_behind_core(folder: ModelFolder, adapter: Adapter) -> dict[str, Tensor]:
    """Of the base with a head for the task, but for what adapters bring: that is random where the base has none."""
    module = read_module(folder.weights, folder.task, adapter, torch.float32)
    core = {id(part) for name, part in module.base_model.named_parameters() if not name.startswith("pooler.")}
    return {
        name: part.detach().clone()
        for name, part in module.named_parameters()
        if id(part) not in core and not adapter.brings(name)
    }


def _divided(
    skeleton: PreTrainedModel, changes: dict[str, LayerChange]
) -> tuple[dict[str, LayerChange], dict[str, LayerChange]]:
    """Those of layers behind the core, by their names; and the others, by their names in the base model."""
    behind = Head.linears_of(skeleton)
    prefix = "" if skeleton.base_model is skeleton else f"{skeleton.base_model_prefix}."
    return (
        {name: change for name, change in changes.items() if name in behind},
        {name.removeprefix(prefix): change for name, change in changes.items() if name not in behind},
    )
