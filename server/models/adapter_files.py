"""A PEFT folder as changes of linear layers, for adapters that share the worker of their base.

PEFT itself says which layers the config names, on the architecture without weights. Every tensor of the folder must be
of use and every layer have its tensors: what is more than that cannot be shared, and is merged into a copy of the base.

Dimension key: K inputs of a layer, N its outputs, R rank.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from server.models.adapter import WEIGHTS, Adapter
from server.models.describe import read_json
from server.models.lora import PLAIN_STARTS, PREFIX, WITHOUT_EFFECT
from server.modules.adapted import LayerChange, NotShared
from server.out_of_memory import raise_if_memory

NAME = "default"
"""PEFT's name of an adapter in a module."""

BY_TYPE = {
    "LORA": {
        "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias",
        "fan_in_fan_out", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "eva_config",
        "corda_config", "runtime_config",
    },
    "IA3": {"feedforward_modules", "fan_in_fan_out", "init_ia3_weights"},
}  # fmt: skip
"""Fields of the config that are read here or by PEFT. All others have to be unset."""

UNSEEN = ("base_model_name_or_path", "revision", "inference_mode")
"""Fields that say nothing of the layers."""
MAX_CONFIGS = 8

COMMON = {"peft_type", "target_modules", "exclude_modules", "modules_to_save"}

HARMLESS_STARTS = (*PLAIN_STARTS, "eva", "orthogonal")
"""Values of init_lora_weights that leave the base's weights as they are."""


class Targets:
    """PEFT's layers by name, for the configs of one base's adapters. Finding them takes most of the time of a load.

    Those of the last configs are kept: fine-tunes of one base often differ in their weights alone.
    """

    def __init__(self, skeleton: PreTrainedModel) -> None:
        self.skeleton = skeleton
        self._found: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def of(self, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
        """Raises `NotShared`."""
        key = json.dumps({name: value for name, value in config.items() if name not in UNSEEN}, sort_keys=True)
        if key not in self._found:
            self._found[key] = _targets(self.skeleton, folder)
        self._found.move_to_end(key)
        while len(self._found) > MAX_CONFIGS:
            self._found.popitem(last=False)
        return self._found[key]


def read_changes(targets: Targets, adapter: Adapter) -> dict[str, LayerChange]:
    """What the adapter changes, by name of the linear layer.

    Raises `NotShared` for whatever is more than a change of linear layers, or does not fit.
    """
    config = read_json(adapter.folder, "adapter_config.json")
    _check_config(config)
    layers = targets.of(adapter.folder, config)
    try:
        tensors = load_file(adapter.folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise NotShared(f"its weights cannot be read ({error})") from error
    reader = _Tensors({name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()})
    read = _lora if config["peft_type"] == "LORA" else _ia3
    changes = {name: read(name, layer, reader) for name, layer in layers.items()}
    changes |= _saved(targets.skeleton, config.get("modules_to_save") or (), reader)
    changes |= _with_tables(targets.skeleton, changes, reader)
    changes |= _with_biases(targets.skeleton, changes, reader)
    reader.finish()
    return changes


def _check_config(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind not in BY_TYPE:
        raise NotShared(f"its type is {kind}")
    known = COMMON | BY_TYPE[kind] | WITHOUT_EFFECT
    for name in sorted(config.keys() - known):
        if config[name]:
            raise NotShared(f"its config sets {name}")
    if config.get("init_lora_weights", True) not in HARMLESS_STARTS:
        raise NotShared(f"init_lora_weights is {config['init_lora_weights']}, which changes the base's weights")


def _targets(skeleton: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """PEFT's layers by name, as its own rules find them. The skeleton is left as it is."""
    from peft import PeftConfig, inject_adapter_in_model
    from peft.tuners.ia3 import Linear as Ia3Linear
    from peft.tuners.lora import Embedding as LoraEmbedding
    from peft.tuners.lora import Linear as LoraLinear
    from peft.tuners.tuners_utils import BaseTunerLayer

    module = copy.deepcopy(skeleton)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = PeftConfig.from_pretrained(str(folder))
            if hasattr(config, "init_lora_weights"):
                # The weights come from the file.
                config.init_lora_weights = False
            inject_adapter_in_model(config, module, adapter_name=NAME, low_cpu_mem_usage=True)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        raise_if_memory(error)
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise NotShared(f"PEFT refuses it ({line})") from error
    layers = {name: part for name, part in module.named_modules() if isinstance(part, BaseTunerLayer)}
    embedding = next(name for name, part in skeleton.named_modules() if part is skeleton.get_input_embeddings())
    for name, layer in layers.items():
        if type(layer) is LoraEmbedding and name == embedding and not layer.use_dora[NAME]:
            continue
        if type(layer) not in (LoraLinear, Ia3Linear) or type(layer.get_base_layer()) not in (nn.Linear, Conv1D):
            raise NotShared(f"it changes {name}, which is no linear layer")
    return layers


class _Tensors:
    """Of a folder, each of which must be taken."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._left = tensors

    def take(self, name: str) -> Tensor:
        """In float32. Raises `NotShared` where there is none, or where it is not finite."""
        tensor = self.find(name)
        if tensor is None:
            raise NotShared(f"it lacks {name}")
        return tensor

    def find(self, *names: str) -> Tensor | None:
        """The first that there is."""
        name = next((name for name in names if name in self._left), None)
        if name is None:
            return None
        tensor = self._left.pop(name).float()
        if not tensor.isfinite().all():
            raise NotShared(f"{name} is not finite")
        return tensor

    def finish(self) -> None:
        if self._left:
            raise NotShared(f"it holds {min(self._left)}, which is no change of a linear layer that its config names")


def _lora(name: str, layer: Any, tensors: _Tensors) -> LayerChange:
    scaling = float(layer.scaling[NAME])
    is_embedding = isinstance(layer.get_base_layer(), nn.Embedding)
    names = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A.weight", "lora_B.weight")
    a_RK, b_NR = (tensors.take(f"{name}.{tensor}") for tensor in names)
    rank, (num_outputs, num_inputs) = layer.r[NAME], (layer.out_features, layer.in_features)
    if is_embedding:
        num_inputs, num_outputs = layer.get_base_layer().weight.shape
    if a_RK.shape != (rank, num_inputs) or b_NR.shape != (num_outputs, rank):
        raise NotShared(
            f"its matrices for {name} have the shapes {list(a_RK.shape)} and {list(b_NR.shape)}, where rank {rank} on "
            f"this base takes {[rank, num_inputs]} and {[num_outputs, rank]}"
        )
    bias_N = tensors.take(f"{name}.lora_B.bias") * scaling if layer.lora_bias[NAME] else None
    magnitude = f"{name}.lora_magnitude_vector"
    magnitude_N = (tensors.find(magnitude, f"{magnitude}.weight")) if layer.use_dora[NAME] else None
    if layer.use_dora[NAME] and magnitude_N is None:
        raise NotShared(f"it lacks {magnitude}")
    if magnitude_N is not None and bias_N is not None:
        raise NotShared("it combines use_dora and lora_bias")
    return LayerChange(
        a_RK=a_RK,
        b_NR=b_NR * scaling,
        magnitude_N=None if magnitude_N is None else magnitude_N.flatten(),
        added_N=bias_N,
    )


def _ia3(name: str, layer: Any, tensors: _Tensors) -> LayerChange:
    scale = tensors.take(f"{name}.ia3_l").flatten()
    return LayerChange(in_K=scale) if layer.is_feedforward else LayerChange(out_N=scale)


def _saved(skeleton: PreTrainedModel, endings: Sequence[str], tensors: _Tensors) -> dict[str, LayerChange]:
    """Layers that the adapter brings whole, found as PEFT finds them: by the ends of their names."""
    found = {}
    for name, part in skeleton.named_modules():
        if not name.endswith(tuple(endings)):
            continue
        if part is skeleton.get_input_embeddings():
            found[name] = LayerChange(weight_NK=tensors.take(f"{name}.weight").t())
            continue
        if type(part) not in (nn.Linear, Conv1D):
            raise NotShared(f"it brings {name} whole, which is no linear layer")
        weight = tensors.take(f"{name}.weight")
        found[name] = LayerChange(
            weight_NK=weight.t() if type(part) is Conv1D else weight,
            bias_N=None if part.bias is None else tensors.take(f"{name}.bias"),
        )
    return found


def _with_tables(
    skeleton: PreTrainedModel, changes: Mapping[str, LayerChange], tensors: _Tensors
) -> dict[str, LayerChange]:
    """The changes of the embedding and the head where PEFT saved their weights beside an adapter of either."""
    found: dict[str, LayerChange] = {}
    embedding, head = skeleton.get_input_embeddings(), skeleton.get_output_embeddings()
    for name, part in skeleton.named_modules():
        if part is not embedding and part is not head:
            continue
        weight = tensors.find(f"{name}.base_layer.weight", f"{name}.weight")
        if weight is not None:
            weight_NK = weight.t() if part is embedding else weight
            found[name] = replace(changes.get(name, LayerChange()), weight_NK=weight_NK)
    return found


def _with_biases(
    skeleton: PreTrainedModel, changes: Mapping[str, LayerChange], tensors: _Tensors
) -> dict[str, LayerChange]:
    """The changes of layers whose biases were trained too, with and without matrices."""
    found: dict[str, LayerChange] = {}
    for name, part in skeleton.named_modules():
        if type(part) not in (nn.Linear, Conv1D):
            continue
        bias_N = tensors.find(f"{name}.base_layer.bias", f"{name}.bias")
        if bias_N is not None:
            found[name] = replace(changes.get(name, LayerChange()), bias_N=bias_N)
    return found
