"""What serving a model would take, by what loads it: its module is built without weights, its cache is only counted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from server.config import ModelConfig
from server.encoder.build import pads
from server.engine import memory
from server.engine.attention.choose import bytes_per_block
from server.engine.engine import default_max_batch_tokens
from server.engine.executors import cache_type
from server.engine.executors.encoder_decoder import EncoderDecoderRunner
from server.engine.executors.generic import probe
from server.engine.memory import CudaShare
from server.errors import ConfigurationError
from server.models import loader
from server.models.adapter import check
from server.models.adapter_files import Targets
from server.models.adapter_files import read_weights as read_adapter_weights
from server.models.describe import task_of
from server.models.device import choose_device
from server.models.embedder import has_pooling
from server.models.folder import ModelFolder, look
from server.models.lengths import longest_input, longest_source
from server.models.module import read_module
from server.models.tokenizer_files import has_tokenizer, load_tokenizer
from server.models.virtual_tokens import read_virtual_tokens
from server.models.weights import read_weights
from server.modules.adapted import NotShared
from server.modules.attention_calls import ATTENTION, set_attention
from server.modules.unsupported import FORWARD_FAILURES, Unsupported
from server.native import kernels
from server.number_types import WEIGHT_TYPES, KvDtype
from server.tasks import EMBED, GENERATE, SEQ2SEQ, TASKS
from server.worker import kernel_trial

UNFUSED = ("generic", "compat")
"""Executors whose rows depend on the batch."""


@dataclass(frozen=True, kw_only=True)
class PlannedCache:
    """The KV cache of a decoder."""

    kv_dtype: KvDtype
    token_bytes: int
    num_bytes: int
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """One model as it would be served. Bytes are of memory, where no other is said."""

    name: str
    path: str
    base: str | None
    task: str
    architecture: str
    device: str
    dtype: str
    quantize: str
    num_parameters: int
    disk_bytes: int
    weight_bytes: int
    load_bytes: int
    """The most that the weights take on the way."""
    max_model_len: int
    max_source_len: int
    """Of an encoder-decoder, whose cache holds sources beside sequences; else 0."""
    max_running: int
    max_batch_tokens: int | None
    """None for encoders, whose batches are not bounded by this."""
    cache: PlannedCache | None
    """None for encoders, and for a decoder whose cache is known only when it runs."""
    has_chat_template: bool
    shares_worker_of: str | None
    """Of an adapter: the model in whose worker it is served, whose cache it uses too."""
    not_shared_because: str | None
    """Of an adapter whose base is served too, and that cannot share its worker: why, as the end of a sentence."""

    @property
    def needed_bytes(self) -> int:
        return max(self.load_bytes, self.weight_bytes + (self.cache.num_bytes if self.cache else 0))


def plan_model(model: ModelConfig, num_on_gpu: int = 1, host: str | None = None) -> PlannedModel:
    """``num_on_gpu`` models share a GPU if this one goes there. An adapter may share the worker of ``host``.

    Raises `ConfigurationError` for whatever loading would refuse and can be seen without weights.
    """
    folder = look(model)
    folder.check_files()
    device = choose_device(model)
    kernel_trial.choose(model, 1)
    dtype = loader.choose_dtype(model, folder.task, device)
    # Of an encoder the products alone may be in fewer bits.
    is_decoder = TASKS[folder.task].is_decoder
    products = dtype if is_decoder else loader.product_dtype(model, device) or dtype
    own_tokenizer = folder.adapter is None or has_tokenizer(folder.path)
    tokenizer = load_tokenizer(folder.path if own_tokenizer else folder.weights)
    module = _empty_module(folder, dtype)
    max_model_len = longest_input(model, module, tokenizer, folder.task, folder.recipe)
    weights = read_weights(folder.weights)
    plain_bytes = sum(parameter.numel() * dtype.itemsize for parameter in module.parameters())
    # An adapter is merged in float32, whatever comes after.
    load_bytes = sum(parameter.numel() * 4 for parameter in module.parameters()) if folder.adapter else plain_bytes
    if is_decoder:
        loader.generation_defaults(folder.path, module, tokenizer, folder.task)
    quantised = WEIGHT_TYPES.get(model.quantize)
    weight_bytes = _weight_bytes(module, dtype, quantised.num_bytes if quantised else products.itemsize)
    not_shared = None if host is None else _why_not_shared(module, folder, model, device)
    is_shared = host is not None and not_shared is None
    if folder.adapter is not None and folder.adapter.has_virtual_tokens and not is_shared:
        check(module, folder.adapter)
    if is_shared:
        if folder.adapter is not None and folder.adapter.has_virtual_tokens:
            max_model_len -= read_virtual_tokens(folder.adapter).num_tokens
        weights = read_weights(folder.path)
        load_bytes = weight_bytes = weights.num_parameters * dtype.itemsize
    # Without weights nothing can be computed: what a step takes of a GPU is not known.
    room = None if device.type == "cpu" else partial(CudaShare(num_models=num_on_gpu).room, device, weight_bytes, 0)
    max_source_len = longest_source(model, module, tokenizer) if folder.task == SEQ2SEQ.name else 0
    cache = (
        _cache(model, module, max_model_len, max_source_len, device, dtype, room)
        if is_decoder and not is_shared
        else None
    )
    return PlannedModel(
        name=model.name,
        path=model.path,
        base=None if folder.adapter is None else str(folder.weights),
        task=folder.task,
        architecture=type(module).__name__,
        device=str(device),
        dtype=str(products).removeprefix("torch."),
        quantize=model.quantize,
        num_parameters=sum(parameter.numel() for parameter in module.parameters()),
        disk_bytes=weights.num_bytes,
        weight_bytes=weight_bytes,
        load_bytes=load_bytes,
        max_model_len=min(max_model_len, cache.num_tokens) if cache and not max_source_len else max_model_len,
        max_source_len=max_source_len,
        max_running=model.max_running,
        max_batch_tokens=(model.max_batch_tokens or default_max_batch_tokens(model.max_running))
        if is_decoder
        else model.max_batch_tokens or None,
        cache=cache,
        has_chat_template=bool(tokenizer.chat_template),
        shares_worker_of=host if is_shared else None,
        not_shared_because=not_shared,
    )


def _why_not_shared(
    module: PreTrainedModel, folder: ModelFolder, model: ModelConfig, device: torch.device
) -> str | None:
    """None where an adapter can be served beside its base, as far as can be seen without weights."""
    base_task = (
        EMBED.name if has_pooling(folder.weights) else task_of(folder.weights, folder.config.get("architectures"))
    )
    reads = TASKS[folder.task].reads
    if TASKS[base_task].reads is None if reads else folder.task != GENERATE.name:
        return f"its task is {folder.task}, and that of its base {base_task}"
    if reads == "masks":
        return f"its task is {folder.task}"
    if reads and pads(model.executor, device):
        return "texts are padded"
    if model.deterministic and reads is None and (kernels.name() == "torch" or model.executor in UNFUSED):
        return "deterministic is set, and products here have no kernels of ours"
    assert folder.adapter is not None, "no other model has a host"
    try:
        if folder.adapter.has_virtual_tokens and reads is None:
            read_virtual_tokens(folder.adapter)
        else:
            read_adapter_weights(Targets(module), folder.adapter, may_save=reads is not None)
    except NotShared as error:
        return str(error)
    return None


def _empty_module(folder: ModelFolder, dtype: torch.dtype) -> PreTrainedModel:
    """The architecture without the value of a single weight."""
    module = read_module(folder.weights, folder.task, folder.adapter, dtype, with_weights=False).eval()
    if folder.adapter is not None and not folder.adapter.has_virtual_tokens:
        check(module, folder.adapter)
    return module


def _weight_bytes(module: PreTrainedModel, dtype: torch.dtype, per_weight: float) -> int:
    """About: which products take ``per_weight`` bytes is decided while they are packed, and rows are padded then."""
    in_products: dict[int, nn.Parameter] = {}
    for part in module.modules():
        if isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D":
            in_products[id(part.weight)] = part.weight
    others = [parameter for parameter in module.parameters() if id(parameter) not in in_products]
    return int(
        sum(parameter.numel() for parameter in in_products.values()) * per_weight
        + sum(parameter.numel() for parameter in others) * dtype.itemsize
    )


def _cache(
    model: ModelConfig,
    module: PreTrainedModel,
    max_model_len: int,
    max_source_len: int,
    device: torch.device,
    dtype: torch.dtype,
    cuda_room: Callable[[], int] | None,
) -> PlannedCache | None:
    """As large as the engine would make it now. Raises `ConfigurationError` where one sequence does not fit."""
    if max_source_len and model.kv_dtype != "auto":
        raise cache_type.refusal(model, "it is an encoder-decoder")
    if model.kv_dtype != "auto":
        cache_type.require(module, model, dtype, device)
    try:
        token_bytes = (
            _of_encoder_decoder(model, module) if max_source_len else _token_bytes(model, module, device, dtype)
        )
    except (Unsupported, *FORWARD_FAILURES) as error:
        logging.getLogger("sluice.plan").debug("the cache size is unknown: %s", error)
        return None
    num_blocks = memory.num_blocks(model, token_bytes * model.block_size, max_model_len + max_source_len, cuda_room)
    num_tokens = num_blocks * model.block_size
    return PlannedCache(
        kv_dtype=model.kv_dtype, token_bytes=token_bytes, num_bytes=num_tokens * token_bytes, num_tokens=num_tokens
    )


def _token_bytes(model: ModelConfig, module: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> int:
    set_attention(module, ATTENTION)
    specs = probe(module)
    if model.kv_dtype != "auto":
        block_bytes = bytes_per_block(specs, model.block_size, dtype, device, kv_dtype=model.kv_dtype)
        return block_bytes // model.block_size
    return sum(spec.block_bytes(1, dtype) for spec in specs)


def _of_encoder_decoder(model: ModelConfig, module: PreTrainedModel) -> int:
    """Of a source or a sequence, whichever is more: shapes are all that it takes to know."""
    set_attention(module, "eager")
    runner = EncoderDecoderRunner(module, num_blocks=0, block_size=model.block_size, block_bytes=0, vocab_size=0)
    return runner.measure_block() // model.block_size


def plan_or_problem(model: ModelConfig, num_on_gpu: int = 1, host: str | None = None) -> PlannedModel | str:
    """The plan, or why there is none, in a sentence that says what to do."""
    try:
        return plan_model(model, num_on_gpu, host)
    except ConfigurationError as error:
        return str(error)


def as_json(planned: PlannedModel) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(planned) | {"needed_bytes": planned.needed_bytes}
