"""A model folder's architecture with its weights, or with their shapes alone. Refuses weights that no file brings."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel

from server.models.adapter import Adapter
from server.models.configs import first_line, read_config
from server.models.describe import refuse
from server.models.weights import shapes
from server.out_of_memory import raise_if_memory
from server.tasks import EMBED, TASKS

META = torch.device("meta")

LOAD_FAILURES = (
    OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError, RecursionError,
    ArithmeticError, IndexError, re.error, AssertionError, SafetensorError, StrictDataclassError,
)  # fmt: skip
"""What transformers raises for a config or weights that it cannot make a model of."""


def read_module(
    folder: Path, task: str, adapter: Adapter | None, dtype: torch.dtype, *, with_weights: bool = True
) -> PreTrainedModel:
    """``with_weights`` False reads only the shapes of the weights: every parameter is on the meta device."""
    labels = adapter.labels if adapter else {}
    try:
        config = read_config(folder, **labels)
        options: dict[str, Any] = {
            "dtype": dtype,
            # A base that is itself a classifier has a head for other labels: the adapter's own comes after.
            "ignore_mismatched_sizes": adapter is not None,
            "output_loading_info": True,
            **(_without_pooler(config) if task == EMBED.name else {}),
        }
        read = _weights if with_weights else _shapes
        module, info = read(folder, task, config, options)
    except LOAD_FAILURES as error:
        raise_if_memory(error)
        line = first_line(error)
        raise refuse(
            f"The model in {folder} cannot be loaded ({line}). Check that its files are complete, or fetch it again."
        ) from error
    _check_complete(folder, adapter, info)
    loaded: PreTrainedModel = module
    return loaded


def _auto_class(task: str) -> Any:
    return getattr(transformers, TASKS[task].auto_class)


def _weights(folder: Path, task: str, config: PreTrainedConfig, options: dict[str, Any]) -> Any:
    local = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    return _auto_class(task).from_pretrained(folder, config=config, **local, **options)


def _shapes(folder: Path, task: str, config: PreTrainedConfig, options: dict[str, Any]) -> Any:
    """As transformers matches weights with a module, by tensors that have a shape and no values."""
    candidates = _auto_class(task)._model_mapping[type(config)]
    if isinstance(candidates, tuple):
        # A few types have several architectures for one task; the config then names one.
        named = [candidate for candidate in candidates if candidate.__name__ in (config.architectures or [])]
        candidates = (named or list(candidates))[0]
    if candidates.config_class is config.sub_configs.get("text_config"):
        config = config.get_text_config()
    tensors = {name: torch.empty(shape, device=META) for name, shape in shapes(folder).items()}
    return candidates.from_pretrained(None, config=config, state_dict=tensors, device_map={"": META}, **options)


def _without_pooler(config: PreTrainedConfig) -> dict[str, bool]:
    """A pooler makes no part of an embedding, and many a folder has no weights for it."""
    takes = "add_pooling_layer" in inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if takes else {}


def _check_complete(folder: Path, adapter: Adapter | None, info: dict[str, Any]) -> None:
    """Weights that no file brings would be random: refuse them by name."""
    absent = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}
    absent = {name for name in absent if adapter is None or not adapter.brings(name)}
    if absent:
        names = sorted(absent)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise refuse(
            f"The weights in {folder} lack {', '.join(names[:3])}{more}, which its architecture needs. "
            "Check that the folder is complete and that architectures in config.json is right."
        )
