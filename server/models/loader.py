"""Weights from disk: a folder becomes a module in eval mode on its device, with its tokenizer and facts.

Nothing is downloaded, no code from a folder is run, and only safetensors are read. Knows neither engine nor front.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from server.config import ModelConfig
from server.languages import Languages
from server.models import describe
from server.models.adapter import Adapter, embedding_rows, merge
from server.models.device import choose_device, use_device
from server.models.embedder import Embedder, Recipe
from server.models.folder import look
from server.models.languages import (
    can_answer,
    read_languages,
    rewriting_tasks,
    summary_options,
    summary_prefix,
    translation_options,
    translation_prefix,
)
from server.models.lengths import longest_input, longest_source
from server.models.module import read_module
from server.models.tokenizer_files import has_tokenizer, load_tokenizer, tokenizer_files
from server.native import kernels
from server.protocol import Embedding, GenerationValue, ProblemType, TokenizerFiles
from server.tasks import SEQ2SEQ, TASKS


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready for an engine: merged, cast, moved; its linears not yet packed."""

    module: PreTrainedModel | Embedder
    config: PreTrainedConfig
    task: str
    """A key of `tasks.TASKS`."""
    tokenizer: TokenizerFiles
    architecture: str
    max_model_len: int
    max_text_len: int
    """Most tokens that its layers can read, even where its vectors are made of fewer."""
    max_source_len: int
    """Of an encoder-decoder; else 0."""
    start_ids: list[int]
    """The same: what every output follows."""
    languages: Languages | None
    rewriting_tasks: list[str]
    """Of an encoder-decoder: which of ``translation`` and ``summarization`` it does."""
    translation_prefix: str
    """Words before every text, of one without languages; often none."""
    translation_options: dict[str, GenerationValue]
    """Defaults for translations, of one without pairs of languages."""
    can_answer: bool
    """Whether its kind was trained to answer questions in words."""
    summary_prefix: str
    """Words before a text that ask for a summary; often none."""
    summary_options: dict[str, GenerationValue]
    """Defaults for summaries."""
    labels: list[str]
    embedding: Embedding | None
    problem_type: ProblemType | None
    generation_config: dict[str, GenerationValue]
    num_parameters: int
    attribution: str | None


def load(model: ModelConfig) -> LoadedModel:
    """Read the folder that ``model`` names. Every failure is a ConfigurationError in one sentence."""
    # A worker's standard error is a log, not a terminal; and weights that are missing are refused below, by name.
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    looked = look(model)
    looked.check_files()
    folder, weights, adapter, task, recipe = looked.path, looked.weights, looked.adapter, looked.task, looked.recipe
    device = choose_device(model)
    use_device(device)
    dtype = choose_dtype(model, task, device)
    words = folder if adapter is None or has_tokenizer(folder) else weights
    tokenizer = load_tokenizer(words)
    module = read_module(weights, task, adapter, torch.float32 if adapter else dtype)
    if adapter is not None:
        _make_room(module, adapter)
        module = merge(module, adapter)
    module = _place(module, device, dtype)
    architecture = type(module).__name__
    max_model_len, max_text_len = (longest_input(model, module, tokenizer, task, each) for each in (recipe, None))
    is_seq2seq = task == SEQ2SEQ.name
    said = _own_config(folder) or looked.config
    if recipe is not None:
        module = Embedder(module, recipe.pooling)
    languages = read_languages(words, said, tokenizer) if is_seq2seq else None
    return LoadedModel(
        module=module,
        config=module.config,
        task=task,
        tokenizer=tokenizer_files(tokenizer),
        architecture=architecture,
        max_model_len=max_model_len,
        max_text_len=max_text_len,
        max_source_len=longest_source(model, module, tokenizer) if is_seq2seq else 0,
        start_ids=describe.start_ids_of(folder, module.config, _generation_config(folder, module))
        if is_seq2seq
        else [],
        languages=languages,
        rewriting_tasks=rewriting_tasks(said, languages) if is_seq2seq else [],
        translation_prefix=translation_prefix(said) if is_seq2seq else "",
        translation_options=translation_options(said) if is_seq2seq else {},
        can_answer=is_seq2seq and can_answer(said),
        summary_prefix=summary_prefix(said) if is_seq2seq else "",
        summary_options=summary_options(said) if is_seq2seq else {},
        labels=describe.labels_of(module.config, task),
        embedding=None if recipe is None else embedding_of(recipe, module.config),
        problem_type=describe.problem_type_of(module.config, task),
        generation_config=generation_defaults(folder, module, tokenizer, task) if TASKS[task].is_decoder else {},
        num_parameters=sum(parameter.numel() for parameter in module.parameters()),
        attribution=describe.attribution_of(*dict.fromkeys((folder, weights))),
    )


def _own_config(folder: Path) -> dict[str, Any]:
    """``config.json`` in the folder; an adapter may bring one, with the prefix that it was trained with."""
    content: dict[str, Any] = describe.read_json(folder, "config.json") if (folder / "config.json").is_file() else {}
    return content


def embedding_of(recipe: Recipe, config: PreTrainedConfig) -> Embedding:
    return Embedding(
        size=config.get_text_config().hidden_size,
        pooling=recipe.pooling,
        is_normalized=recipe.is_normalized,
        prompts=recipe.prompts,
        default_prompt=recipe.default_prompt,
    )


def choose_dtype(model: ModelConfig, task: str, device: torch.device) -> torch.dtype:
    """``auto``: 16 bits for decoders where the device computes in them or the kernels in use multiply, else float32.

    An encoder's one pass is cheap and its scores are compared with thresholds that were set in float32. Its bfloat16
    is for its products alone (`product_dtype`).
    """
    if not TASKS[task].is_decoder and model.dtype == "bfloat16":
        return torch.float32
    if model.dtype != "auto":
        dtype: torch.dtype = getattr(torch, model.dtype)
        return dtype
    if not TASKS[task].is_decoder:
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # Kernels of ours without such instructions still read weights in half the time, and widen them as they multiply.
    return torch.bfloat16 if _cpu_has_bfloat16() or kernels.has("linear") else torch.float32


def product_dtype(model: ModelConfig, device: torch.device) -> torch.dtype | None:
    """Of an encoder's products where it differs from the rest of it: None leaves it as it was loaded.

    Embeddings, norms and heads are a small part of the work and a large part of the accuracy.
    """
    if model.dtype == "bfloat16":
        return torch.bfloat16
    is_quantised = device.type == "cpu" and model.dtype == "auto" and model.quantize != "none"
    return torch.bfloat16 if is_quantised and _cpu_has_bfloat16() else None


def may_narrow(model: ModelConfig, task: str, device: torch.device) -> bool:
    """Whether an encoder's products may run in bfloat16 if that is much faster here and changes no label.

    Vectors are kept and compared with those of other machines: they stay in float32 unless the settings say otherwise.
    """
    is_open = model.dtype == "auto" and model.quantize == "none"
    return is_open and TASKS[task].has_labels and device.type == "cpu" and _cpu_has_bfloat16()


def _cpu_has_bfloat16() -> bool:
    """Whether bfloat16 products run in hardware: with torch's emulation they are slower than float32."""
    try:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return bool(native and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


def _make_room(module: PreTrainedModel, adapter: Adapter) -> None:
    """An adapter that was trained with new tokens brings an embedding with rows for them."""
    rows = embedding_rows(module, adapter)
    if rows is not None and rows != module.get_input_embeddings().weight.shape[0]:
        module.resize_token_embeddings(rows, mean_resizing=False)


def _place(module: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    for parameter in module.parameters():
        # Parameters alone: buffers such as rotary frequencies are float32 in every dtype.
        parameter.data = parameter.data.to(dtype)
    placed: PreTrainedModel = nn.Module.to(module, device)
    return placed.requires_grad_(False).eval()


def generation_defaults(folder: Path, module: PreTrainedModel, tokenizer: Any, task: str) -> dict[str, GenerationValue]:
    return describe.generation_defaults(folder, _generation_config(folder, module), tokenizer.eos_token_id, task)


def _generation_config(folder: Path, module: PreTrainedModel) -> GenerationConfig | None:
    config: GenerationConfig | None = module.generation_config
    if (folder / "generation_config.json").is_file():
        describe.read_json(folder, "generation_config.json")
        config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return config
