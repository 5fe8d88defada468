"""Which models are adapters of others that are served too, and may share their workers; from settings and small files.

Whether an adapter can share one is for the worker to say, which reads its weights.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from server.config import ModelConfig, ServeConfig
from server.tasks import TASKS

OWN_FIELDS = ("name", "path", "base", "share", "task", "max_adapter_gib")
"""Settings of a model that say nothing of how its worker computes, or that the worker looks at."""

ENCODER_TYPES = (
    *(task.peft_type for task in TASKS.values() if task.peft_type and not task.is_decoder),
    "FEATURE_EXTRACTION",
)
TASK_TYPES = ("CAUSAL_LM", *ENCODER_TYPES, None)
"""PEFT's names of the tasks of adapters that may be shared. Where there is none, the worker finds out."""


def base_folder(model: ModelConfig) -> Path:
    """Where the whole weights lie: of an adapter, its base's folder."""
    folder = Path(model.path)
    named = _adapter_config(folder).get("base_model_name_or_path")
    # PEFT leaves it out where it was given a module and no folder.
    places = (model.base,) if named is None else (model.base, str(named), folder / str(named))
    bases = (Path(base) for base in places if base)
    return next((base for base in bases if is_folder(base)), folder)


def is_folder(path: Path) -> bool:
    """False also where it cannot be looked at: its name is too long, or a folder above it may not be read."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_of_encoder(adapter: Path) -> bool:
    """Whether the adapter in the folder is for a model that encodes, as its config says."""
    return _adapter_config(adapter).get("task_type") in ENCODER_TYPES


def served_base(model: ModelConfig, models: Iterable[ModelConfig]) -> str | None:
    """Which of ``models`` is served from the folder of the adapter's base; None for none and for a whole model."""
    if not _adapter_config(Path(model.path)):
        return None
    base = base_folder(model).resolve()
    found = (other.name for other in models if other.name != model.name and Path(other.path).resolve() == base)
    return next(found, None)


def hosts(config: ServeConfig) -> dict[str, str]:
    """By name of an adapter, the model whose worker it may share."""
    configs = {model.name: _adapter_config(Path(model.path)) for model in config.models}
    whole: dict[tuple[Any, ...], str] = {}
    for model in config.models:
        if not configs[model.name]:
            whole.setdefault(_key(model, Path(model.path)), model.name)
    found = {}
    for model in config.models:
        of_adapter = configs[model.name]
        if of_adapter and model.share == "auto" and of_adapter.get("task_type") in TASK_TYPES:
            host = whole.get(_key(model, base_folder(model)))
            if host is not None:
                found[model.name] = host
    return found


def _key(model: ModelConfig, base: Path) -> tuple[Any, ...]:
    """Equal for models that one worker could compute."""
    settings = dataclasses.asdict(model)
    return (base.resolve(), *(value for name, value in settings.items() if name not in OWN_FIELDS))


def _adapter_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
