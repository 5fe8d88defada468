"""What lies in a model folder, without its weights: a line of a list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from server.config import ModelConfig
from server.errors import ConfigurationError
from server.models.weights import read_weights


def is_model_folder(path: Path) -> bool:
    return any((path / name).is_file() for name in ("config.json", "adapter_config.json"))


def describe(folder: Path) -> dict[str, Any]:
    """Its facts; where it cannot be served the reason is in ``notes``."""
    found: dict[str, Any] = {"name": folder.resolve().name, "path": str(folder), "notes": ""}
    try:
        # Heavy: which heads there are is known to what loads models.
        from server.models.folder import look

        model = look(ModelConfig(name=found["name"], path=str(folder)))
        weights = read_weights(folder)
    except ConfigurationError as error:
        return {**found, "notes": str(error)}
    found |= {
        "task": model.task,
        "architecture": next(iter(model.config.get("architectures") or []), None),
        "dtype": weights.dtype,
        "num_parameters": weights.num_parameters,
        "weight_bytes": weights.num_bytes,
    }
    if model.adapter is not None:
        found |= {"base": str(model.weights), "notes": f"adapter of {model.weights}"}
    return found
