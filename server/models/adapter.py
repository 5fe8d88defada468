"""A PEFT folder: where its base lies, which head it brings, and the merge into the base's weights."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from server.models.adapter_check import check_adapter, check_fields
from server.models.describe import read_json, refuse
from server.models.lora import is_saved, merge_plain
from server.models.weights import tensors
from server.out_of_memory import raise_if_memory
from server.sharing import is_folder
from server.tasks import TASKS, Task

WEIGHTS = "adapter_model.safetensors"

MERGED_TYPES = ("LORA", "IA3")
"""PEFT's types of adapters whose changes can be added to the base's weights."""
VIRTUAL_TYPES = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING")
"""Those that put virtual tokens before the prompt."""

BY_PEFT_TYPE = {task.peft_type: task for task in TASKS.values() if task.peft_type is not None}

LABEL_FIELDS = ("id2label", "label2id", "num_labels", "problem_type", "pad_token_id")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter's folder, read and checked; its weights are not loaded yet."""

    folder: Path
    base: Path
    has_virtual_tokens: bool
    """Whether it puts tokens before the prompt, and changes no weights."""
    task: str | None
    """None where PEFT's task_type does not say; the base's architecture then does."""
    labels: dict[str, Any]
    """Fields of the base's config that the adapter's head replaces."""
    modules_to_save: tuple[str, ...]
    """Modules that the adapter brings whole in place of the base's: the ends of their names."""

    def brings(self, weight: str) -> bool:
        """Whether the adapter holds the weight that the base lacks."""
        owners = [weight[: match.start()] for match in re.finditer(r"\.", weight)]
        return any(is_saved(owner, self.modules_to_save) for owner in owners)


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def read_adapter(folder: Path, base: str | None) -> Adapter:
    """``base`` is the operator's word on where the base model lies; else the adapter's own config names it."""
    config = read_json(folder, "adapter_config.json")
    check_fields(folder, config)
    if config.get("peft_type") not in (*MERGED_TYPES, *VIRTUAL_TYPES):
        raise refuse(
            f"{folder} holds a {config.get('peft_type')} adapter. The server supports the types "
            f"{', '.join(MERGED_TYPES + VIRTUAL_TYPES)}."
        )
    if not (folder / WEIGHTS).is_file():
        can_convert = (folder / "adapter_model.bin").is_file()
        advice = f"sluice convert {folder} OUT writes it again." if can_convert else "Save the adapter again."
        raise refuse(f"{folder} has no {WEIGHTS}. {advice}")
    task = BY_PEFT_TYPE.get(config.get("task_type") or "")
    heads = () if task is None else task.peft_heads
    return Adapter(
        folder=folder,
        base=_base_folder(folder, base or config.get("base_model_name_or_path") or ""),
        has_virtual_tokens=config["peft_type"] in VIRTUAL_TYPES,
        task=None if task is None else task.name,
        labels={} if task is None else _labels(folder, task),
        modules_to_save=tuple(sorted({*(config.get("modules_to_save") or ()), *heads})),
    )


def merge(module: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """The base with the adapter's products added to its weights and the adapter's head in place of its own.

    Called in float32: a product added to a weight in 16 bits would lose most of itself.
    """
    check(module, adapter)
    if _merged_plainly(module, adapter):
        return module
    # Imported here, and below: what has no need of it does not wait for it.
    from peft import PeftModel

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            peft_model = PeftModel.from_pretrained(module, str(adapter.folder), local_files_only=True)
            _untie(module)
            merged: PreTrainedModel = peft_model.merge_and_unload(safe_merge=True)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise_if_memory(error)
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise refuse(
            f"The adapter in {adapter.folder} does not fit its base {adapter.base} ({line}). "
            "Check that the base is the one that it was trained on."
        ) from error
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            raise refuse(
                f"The adapter in {adapter.folder} lacks weights that its config names. "
                f"Save it again ({str(warning.message)[:300]})."
            )
    return merged


def check(module: PreTrainedModel, adapter: Adapter) -> None:
    """Refuse an adapter that cannot be merged into ``module``, whose weights may be without values."""
    if adapter.has_virtual_tokens:
        raise refuse(
            f"The adapter in {adapter.folder} has virtual tokens, which no weights can hold. "
            f"Serve its base {adapter.base} too, with the same settings: both then share a worker."
        )
    check_adapter(module, read_json(adapter.folder, "adapter_config.json"), adapter.folder / WEIGHTS, adapter.base)


def _merged_plainly(module: PreTrainedModel, adapter: Adapter) -> bool:
    config = read_json(adapter.folder, "adapter_config.json")
    try:
        return merge_plain(module, config, adapter.folder / WEIGHTS, adapter.modules_to_save)
    except (OSError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
        raise_if_memory(error)
        # PEFT says what is wrong with it.
        return False


def embedding_rows(module: PreTrainedModel, adapter: Adapter) -> int | None:
    """Rows of the input embedding that the adapter brings in place of the base's, if it does."""
    embedding = module.get_input_embeddings()
    name = next(name for name, part in module.named_modules() if part is embedding)
    # Beside a delta for the embedding, PEFT saves what it was added to as base_layer.
    endings = (f".{name}.weight", f".{name}.base_layer.weight")
    shapes = _shapes(adapter.folder / WEIGHTS)
    return next((shape[0] for key, shape in shapes.items() if key.endswith(endings)), None)


def _untie(module: PreTrainedModel) -> None:
    """Give the head a weight of its own where a delta is for it or for the embedding that it shares, not for both."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    embedding, head = module.get_input_embeddings(), module.get_output_embeddings()
    if head is None or head.weight is not embedding.weight:
        return
    if isinstance(embedding, BaseTunerLayer) or isinstance(head, BaseTunerLayer):
        layer = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
        layer.weight = nn.Parameter(layer.weight.detach().clone())
        module.config.tie_word_embeddings = False


def _base_folder(folder: Path, named: str) -> Path:
    for candidate in (Path(named), folder / named):
        if named and is_folder(candidate):
            return candidate
    raise refuse(
        f"The base model {named!r} of the adapter in {folder} is not a folder here. "
        "Give the base model's folder as the model's base setting."
    )


def _labels(folder: Path, task: Task) -> dict[str, Any]:
    """From config.json beside the adapter; without one, numbered labels for as many outputs as its head has."""
    if not task.has_labels:
        return {} if task.num_outputs is None else {"num_labels": task.num_outputs}
    if (folder / "config.json").is_file():
        config = read_json(folder, "config.json")
        fields = {name: config[name] for name in LABEL_FIELDS if config.get(name) is not None}
        if "id2label" in fields:
            fields["id2label"] = {int(i): str(label) for i, label in fields["id2label"].items()}
            fields.setdefault("label2id", {label: i for i, label in fields["id2label"].items()})
            fields.pop("num_labels", None)
        return fields
    outputs = _head_outputs(folder / WEIGHTS, task)
    return {} if outputs is None else {"num_labels": outputs}


def _head_outputs(path: Path, task: Task) -> int | None:
    shapes = [
        shape
        for name, shape in _shapes(path).items()
        if name.endswith(".weight") and any(f".{head}." in name for head in task.peft_heads) and ".lora_" not in name
    ]
    # Of a head with several layers, the last is the narrowest.
    return min((shape[0] for shape in shapes), default=None)


def _shapes(path: Path) -> dict[str, list[int]]:
    return {name: tensor["shape"] for name, tensor in tensors(path).items()}
