"""What a model folder holds and what it is for: looked at, checked, and not loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.config import ModelConfig
from server.models import describe
from server.models.adapter import Adapter, is_adapter, read_adapter
from server.models.checksums import check_folder
from server.models.describe import refuse
from server.models.embedder import Recipe, has_pooling, read_recipe
from server.tasks import EMBED

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")

MAX_JSON_BYTES = 32 * 1024 * 1024
MAX_BYTES = {"tokenizer.json": 256 * 1024 * 1024, "vocab.json": 128 * 1024 * 1024}
"""Files with a limit of their own. The largest in use have about a fifth of it."""


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A folder that can be served, as far as can be seen without its weights."""

    path: Path
    weights: Path
    """Where the whole weights lie: of an adapter, its base's folder."""
    adapter: Adapter | None
    config: dict[str, Any]
    """``config.json`` beside the weights."""
    task: str
    """A key of `tasks.TASKS`."""
    recipe: Recipe | None
    """Of a model for embeddings."""

    def check_files(self) -> None:
        """Of an adapter, its base's too."""
        for place in dict.fromkeys((self.path, self.weights)):
            check_files(place)


def check_files(folder: Path) -> None:
    """Refuse files that are larger than any model needs, or not what the folder's manifest says."""
    _check_sizes(folder)
    check_folder(folder)


def look(model: ModelConfig) -> ModelFolder:
    """Every failure is a ConfigurationError in one sentence."""
    folder = Path(model.path)
    if not folder.is_dir():
        raise refuse(f"Model {model.name} has no folder at {folder}. Check the path.")
    if model.base is not None and not is_adapter(folder):
        raise refuse(f"Model {model.name} has a base and {folder} holds no adapter. Set base for adapters only.")
    adapter = read_adapter(folder, model.base) if is_adapter(folder) else None
    weights = folder if adapter is None else adapter.base
    config = describe.read_json(weights, "config.json")
    describe.check_config(weights, config)
    _check_weights(weights)
    task = _task_of(model, adapter, (folder, weights), config.get("architectures"))
    recipe = None
    if task == EMBED.name:
        # An adapter that was trained for embeddings brings the pooling that it was trained with.
        place = folder if has_pooling(folder) else weights
        recipe = read_recipe(place, str(config.get("model_type")))
    return ModelFolder(path=folder, weights=weights, adapter=adapter, config=config, task=task, recipe=recipe)


def _task_of(
    model: ModelConfig, adapter: Adapter | None, places: Sequence[Path], architectures: list[str] | None
) -> str:
    if model.task != "auto":
        return model.task
    if adapter is not None and adapter.task is not None:
        return adapter.task
    return EMBED.name if any(map(has_pooling, places)) else describe.task_of(places[-1], architectures)


def _check_sizes(folder: Path) -> None:
    """JSON is read whole, and takes many times its size in memory."""
    for path in sorted(folder.glob("*.json")):
        limit = MAX_BYTES.get(path.name, MAX_JSON_BYTES)
        if path.is_file() and (size := path.stat().st_size) > limit:
            raise refuse(f"{path} has {size} bytes and at most {limit} are read. Fetch the folder again.")


def _check_weights(folder: Path) -> None:
    if any((folder / name).is_file() for name in WEIGHTS):
        return
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise refuse(
            f"{folder} has its weights in {pickles[0]}, a format that can run code and is not read. {_advice(folder)}"
        )
    raise refuse(f"{folder} has no model.safetensors. Give the path of a complete Hugging Face model folder.")


def _advice(folder: Path) -> str:
    if any(folder.glob("pytorch_model*.bin")):
        return f"sluice convert {folder} OUT converts it to safetensors."
    return "Save the model again with safetensors."
