"""Whether an adapter's weights fit its base: by names, shapes, types and numbers, before any of them is merged.

Dimension key: N outputs of a layer, K its inputs, R rank of the adapter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from server.models.describe import refuse
from server.models.lora import PREFIX, is_saved, is_target
from server.models.weights import tensors

TENSORS = {"LORA": ("lora_A.weight", "lora_B.weight"), "IA3": ("ia3_l",)}
"""Of each layer that an adapter targets, by PEFT's type of the adapter."""

FLOATS = ("F64", "F32", "F16", "BF16")
_PRODUCT = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B)\.weight")
UNUSUAL = ("layers_to_transform", "layers_pattern", "exclude_modules", "target_parameters")
"""Fields of an adapter's config that change which modules its targets are."""


def check_adapter(module: PreTrainedModel, config: Mapping[str, Any], path: Path, base: Path) -> None:
    """Refuse the adapter in ``path`` by its first tensor that does not fit. ``module`` may be without values."""
    found = tensors(path)
    check = _Check(module, config, path, base)
    for name, tensor in found.items():
        if tensor["dtype"] not in FLOATS:
            check.refuse(f"{name} is of type {tensor['dtype']}, and not of {', '.join(FLOATS)}")
        if product := _PRODUCT.fullmatch(name):
            check.product(name, product["module"].removeprefix(PREFIX), product["part"], tensor["shape"])
        else:
            check.whole(name, tensor["shape"])
    check.all_there(found)
    _check_finite(path)


def check_fields(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a config by the first field that has no meaning."""
    for field, (is_right, rule) in FIELDS.items():
        value = config.get(field)
        if value is not None and not is_right(value):
            raise refuse(f"{field} in {folder / 'adapter_config.json'} is {value!r:.100}: it must be {rule}.")


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError, RecursionError, OverflowError):
        return False
    return True


def _are_patterns(value: Any) -> bool:
    return _is_pattern(value) or (_is_names(value) and all(map(_is_pattern, value)))


def _is_by_pattern(value: Any, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(_is_pattern(name) and is_right(part) for name, part in value.items())


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    """Finite, as a float too."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


_NAMES_OR_PATTERN = (lambda value: _is_names(value) or _is_pattern(value), "a list of names, or a pattern")

FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "peft_type": (lambda value: isinstance(value, str), "a name"),
    "task_type": (lambda value: isinstance(value, str), "a name"),
    "base_model_name_or_path": (lambda value: isinstance(value, str), "a path"),
    "r": (_is_rank, "an integer above 0"),
    "lora_alpha": (_is_number, "a number"),
    "target_modules": _NAMES_OR_PATTERN,
    "exclude_modules": _NAMES_OR_PATTERN,
    "feedforward_modules": _NAMES_OR_PATTERN,
    "layers_pattern": (_are_patterns, "a pattern, or a list of patterns"),
    "modules_to_save": (_is_names, "a list of names"),
    "rank_pattern": (lambda value: _is_by_pattern(value, _is_rank), "ranks by module"),
    "alpha_pattern": (lambda value: _is_by_pattern(value, _is_number), "numbers by module"),
}


class _Check:
    """One adapter against one base."""

    def __init__(self, module: PreTrainedModel, config: Mapping[str, Any], path: Path, base: Path) -> None:
        self._modules = dict(module.named_modules())
        self._parameters = dict(module.named_parameters(remove_duplicate=False))
        self._tables = {id(part) for part in (module.get_input_embeddings(), module.get_output_embeddings())}
        self._config = config
        self._folder = path.parent
        self._base = base

    def refuse(self, problem: str) -> NoReturn:
        raise refuse(
            f"The adapter in {self._folder} does not fit its base {self._base}: {problem}. "
            "Check that the base is the one that it was trained on."
        )

    def product(self, name: str, target: str, part: str, shape: Sequence[int]) -> None:
        """A is [R, K] and B [N, R]."""
        layer = self._modules.get(target)
        if layer is None:
            self.refuse(f"{name} is for {target}, which the base does not have")
        size_NK = _size(layer)
        if size_NK is None or len(shape) != 2:
            return
        rank = self._rank(target)
        expected = [rank, size_NK[1]] if part == "A" else [size_NK[0], rank]
        if list(shape) != expected:
            self.refuse(f"{name} has the shape {list(shape)}, and rank {rank} on this base takes {expected}")

    def whole(self, name: str, shape: Sequence[int]) -> None:
        """A weight that takes the place of the base's."""
        parameter = self._parameters.get(name.removeprefix(PREFIX))
        owner = self._modules.get(name.removeprefix(PREFIX).rpartition(".")[0])
        # An embedding, and the head over the same tokens, may have rows for tokens that the base does not know.
        if parameter is not None and id(owner) not in self._tables and list(shape) != list(parameter.shape):
            self.refuse(f"{name} has the shape {list(shape)}, and the base {list(parameter.shape)}")

    def all_there(self, names: Mapping[str, Any]) -> None:
        """Each layer that the config names has its tensors."""
        targets = self._config.get("target_modules")
        if not isinstance(targets, str | list) or targets == "all-linear" or any(map(self._config.get, UNUSUAL)):
            return
        for name, layer in self._modules.items():
            if _size(layer) is None or not is_target(name, targets):
                continue
            for tensor in TENSORS[self._config["peft_type"]]:
                key = f"{PREFIX}{name}.{tensor}"
                if key not in names and not self._is_saved(name):
                    raise refuse(
                        f"The adapter in {self._folder} lacks weights that its config names: {key}. Save it again."
                    )

    def _rank(self, target: str) -> Any:
        """As PEFT reads it: a pattern for some modules, else that of all."""
        for pattern, rank in (self._config.get("rank_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", target):
                return rank
        return self._config.get("r")

    def _is_saved(self, name: str) -> bool:
        return is_saved(name, self._config.get("modules_to_save") or ())


def _size(layer: nn.Module) -> tuple[int, int] | None:
    """N and K of a linear layer."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    if isinstance(layer, Conv1D):
        num_inputs, num_outputs = layer.weight.shape
        return num_outputs, num_inputs
    return None


def _check_finite(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                if not torch.isfinite(weights.get_tensor(name)).all():
                    raise refuse(f"{path} has numbers in {name} that are not finite. Train the adapter again.")
    except (OSError, SafetensorError) as error:
        raise refuse(f"{path} cannot be read ({error}). Save the adapter again.") from error
