"""The usual kind of LoRA adapter, added to its base in a few lines; whatever is more than that is PEFT's.

Importing PEFT alone takes longer than reading, merging and checking such an adapter.

Dimension key: N outputs of a linear, K its inputs, R rank of the adapter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

PREFIX = "base_model.model."

READ_HERE = {"r", "lora_alpha", "target_modules", "modules_to_save", "peft_type", "init_lora_weights"}
WITHOUT_EFFECT = {
    "task_type", "base_model_name_or_path", "revision", "peft_version", "auto_mapping", "inference_mode",
    "lora_dropout", "megatron_core", "qalora_group_size",
}  # fmt: skip
"""Fields of an adapter's config that say nothing of what it computes. All others have to be unset."""

PLAIN_STARTS = (True, False, "gaussian")
"""Values of init_lora_weights that leave the base's weights as they are."""


@torch.no_grad()
def merge_plain(module: nn.Module, config: Mapping[str, Any], path: Path, saved: tuple[str, ...]) -> bool:
    """Add the adapter in ``path`` to ``module``, whose parts named in ``saved`` it brings whole.

    False where it is of another kind, or anything in it is not as it should be: the module is then as it was.
    """
    found = plain_targets(module, config, saved)
    if found is None:
        return False
    targets, heads = found
    weights = {name.removeprefix(PREFIX): weight for name, weight in load_file(path).items()}
    linears = _own_linears(module)
    # The module's names are looked for in the file, and the file's in the module.
    if weights.keys() != _names(linears, heads, targets):
        return False
    changed = {f"{name}.{key}": weights[f"{name}.{key}"].float() for name in heads for key in _keys(linears[name])}
    for name in targets:
        a_RK, b_NR = (weights[f"{name}.lora_{part}.weight"].float() for part in "AB")
        weight_NK = linears[name].weight
        if b_NR.shape != (weight_NK.shape[0], config["r"]) or a_RK.shape != (config["r"], weight_NK.shape[1]):
            return False
        changed[f"{name}.weight"] = weight_NK + b_NR @ a_RK * (config["lora_alpha"] / config["r"])
    parameters = {name: module.get_parameter(name) for name in changed}
    if any(new.shape != parameters[name].shape or not new.isfinite().all() for name, new in changed.items()):
        return False
    for name, new in changed.items():
        parameters[name].data = new.to(parameters[name].dtype)
    return True


def plain_targets(
    module: nn.Module, config: Mapping[str, Any], saved: Sequence[str]
) -> tuple[set[str], set[str]] | None:
    """Names of the linears that the adapter adds to, and of those that it brings whole; None where PEFT has to say."""
    if not _is_plain(config):
        return None
    names = [name for name, _ in module.named_modules()]
    heads = {name for name in names if is_saved(name, saved)}
    targets = {name for name in names if is_target(name, config["target_modules"])}
    if not targets or not heads | targets <= _own_linears(module).keys() or heads & targets:
        return None
    return targets, heads


def _is_plain(config: Mapping[str, Any]) -> bool:
    others = config.keys() - READ_HERE - WITHOUT_EFFECT
    return (
        all(not config[name] or (name, config[name]) == ("bias", "none") for name in others)
        and config.get("init_lora_weights", True) in PLAIN_STARTS
        and isinstance(config.get("target_modules"), str | list)
        and config["target_modules"] != "all-linear"
        and isinstance(config.get("r"), int)
        and isinstance(config.get("lora_alpha"), int | float)
    )


def is_target(name: str, targets: str | list[str]) -> bool:
    """As PEFT reads them: a pattern for the whole name, or its last parts."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def is_saved(name: str, endings: Sequence[str]) -> bool:
    """As PEFT reads modules_to_save: by the end of a name, also within a word (``pre_classifier``)."""
    return name.endswith(tuple(endings))


def _own_linears(module: nn.Module) -> dict[str, nn.Linear]:
    """Plain linears by name, but those whose weight is another part's too."""
    uses = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    return {
        name: part
        for name, part in module.named_modules()
        if type(part) is nn.Linear and all(uses[id(parameter)] == 1 for parameter in part.parameters())
    }


def _names(linears: Mapping[str, nn.Linear], heads: set[str], targets: set[str]) -> set[str]:
    """What the adapter's file has to hold, and no more."""
    products = {f"{name}.lora_{part}.weight" for name in targets for part in "AB"}
    return products | {f"{name}.{key}" for name in heads for key in _keys(linears[name])}


def _keys(linear: nn.Linear) -> list[str]:
    return [name for name, _ in linear.named_parameters()]
