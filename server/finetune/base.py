"""The base of a training run: its tokenizer, its module with a head for the task, and what LoRA does to it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from server.errors import EXIT_MODEL, ConfigurationError
from server.finetune.options import Options
from server.finetune.tasks import TrainedTask
from server.models.configs import first_line, read_config
from server.models.folder import check_files
from server.models.module import LOAD_FAILURES
from server.models.tokenizer_files import load_tokenizer
from server.tasks import SEQ2SEQ

LINEARS = (nn.Linear, Conv1D)
"""Layers that LoRA adapts."""


@dataclass(frozen=True)
class Base:
    """What training begins with."""

    tokenizer: Any
    model: Any
    new_modules: list[str]
    """Those whose weights are new, because no file of the base has them."""


def load_base(task: TrainedTask, options: Options) -> Base:
    """In float32. A head for the same number of labels is kept."""
    if not Path(options.model).is_dir():
        raise ConfigurationError(
            f"There is no folder {options.model}. Give --model a Hugging Face model folder "
            "(from a hub: hf download NAME --local-dir FOLDER).",
            exit_code=EXIT_MODEL,
        )
    if (Path(options.model) / "adapter_config.json").exists():
        raise ConfigurationError(f"{options.model} is an adapter. Give --model the folder of its base.")
    check_files(Path(options.model))
    tokenizer = load_tokenizer(Path(options.model))
    try:
        config = read_config(Path(options.model), **task.config_fields())
        model, info = getattr(transformers, task.task.auto_class).from_pretrained(
            options.model,
            config=config,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except LOAD_FAILURES as error:
        raise ConfigurationError(
            f"{options.model} cannot be loaded as a base ({first_line(error)}). "
            "Give --model a Hugging Face model folder with config.json, safetensors and tokenizer.json.",
            exit_code=EXIT_MODEL,
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if task.task is not SEQ2SEQ or getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    # Marian does not save its table of positions, but a base may have its own.
    model._keys_to_ignore_on_save = None
    absent = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}
    return Base(tokenizer, model, sorted({name.rpartition(".")[0] for name in absent}))


def with_lora(task: TrainedTask, base: Base, options: Options) -> Any:
    """LoRA on every linear layer of the body; the head and what is new are trained whole and saved with the adapter."""
    import peft

    model, new_modules = base.model, base.new_modules
    if task.task is SEQ2SEQ:
        body, saved, linears = _of_encoder_decoder(model)
    else:
        body, saved = re.escape(model.base_model_prefix), _saved_whole(model, new_modules)
        linears = {} if model.base_model is model else _linears(model.base_model)
    names = {name.rpartition(".")[2] for name in linears}
    if not names:
        raise ConfigurationError(
            f"{options.model} has no linear layers that LoRA could adapt. Use --method full.", exit_code=EXIT_MODEL
        )
    if body in saved or "" in saved:
        raise ConfigurationError(
            f"{options.model} lacks weights that LoRA cannot train one by one. Use --method full.", exit_code=EXIT_MODEL
        )
    config = peft.LoraConfig(
        task_type=task.task.peft_type,
        r=options.lora_rank,
        lora_alpha=options.lora_alpha or 2 * options.lora_rank,
        lora_dropout=options.lora_dropout,
        target_modules=_targets(body, names, saved),
        modules_to_save=saved or None,
        fan_in_fan_out=any(type(module) is Conv1D for module in linears.values()),
    )
    with warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return peft.get_peft_model(model, config)


def _linears(module: Any) -> dict[str, Any]:
    return {name: part for name, part in module.named_modules() if type(part) in LINEARS}


def _of_encoder_decoder(model: Any) -> tuple[str, list[str], dict[str, Any]]:
    """A pattern of the parts with layers, no modules to save whole, and the linear layers.

    The head is not among them: it has trained weights, often those of the embedding.
    """
    head = model.get_output_embeddings()
    linears = {name: part for name, part in _linears(model).items() if part is not head}
    parts = sorted({re.escape(name.partition(".")[0]) for name in linears if "." in name})
    return f"({'|'.join(parts)})", [], linears


def _saved_whole(model: Any, new_modules: Sequence[str]) -> list[str]:
    """The modules beside the body, and what is new inside of it, such as a pooler."""
    body = model.base_model_prefix
    heads = [name for name, child in model.named_children() if name != body and any(True for _ in child.parameters())]
    inside = [name for name in new_modules if name.partition(".")[0] not in heads]
    return [*heads, *inside]


def _targets(body: str, names: Set[str], saved: Sequence[str]) -> str:
    """A pattern for the body's linear layers, but those that are saved whole.

    Anchored at the body: a head may have a layer of the same name.
    """
    inside = "".join(rf"(?!{re.escape(name)}(\.|$))" for name in saved if name.startswith(f"{body}."))
    return rf"{inside}{body}\.(.*\.)?({'|'.join(sorted(names))})"


def max_length(task: TrainedTask, model: Any, tokenizer: Any, options: Options) -> int:
    """Tokens at which texts are cut: no more than serving takes, and some of the text."""
    limit = task.longest_input(model, tokenizer)
    if options.max_length > limit:
        raise ConfigurationError(f"--max-length is {options.max_length}: this base takes at most {limit} tokens.")
    least = tokenizer.num_special_tokens_to_add(pair=True) + 2
    if 0 < options.max_length < least:
        raise ConfigurationError(f"--max-length is {options.max_length}: it must be at least {least} for this base.")
    return options.max_length or min(task.default_max_length, limit)
