"""A PEFT folder as changes of linear layers and whole heads, for adapters that share the worker of their base.

PEFT itself says which layers and heads the config names, on the architecture without weights. Every tensor of the
folder must be of use and every layer have its tensors: what is more than that cannot be shared, and is merged into a
copy of the base.

Dimension key: K inputs of a layer, N its outputs, R rank.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from server.models.adapter import Adapter
from server.models.adapter_tensors import AdapterTensors
from server.models.describe import read_json
from server.models.lora import PLAIN_STARTS, WITHOUT_EFFECT, is_saved, plain_targets
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
        self._found: OrderedDict[str, tuple[dict[str, _Target], list[str]]] = OrderedDict()

    def of(
        self, adapter: Adapter, config: Mapping[str, Any], *, may_save: bool
    ) -> tuple[dict[str, _Target], list[str]]:
        """Layers by name, and names of modules that the adapter brings whole. Raises `NotShared`."""
        key = json.dumps(
            {name: value for name, value in config.items() if name not in UNSEEN} | {"may_save": may_save},
            sort_keys=True,
        )
        if key not in self._found:
            self._found[key] = _targets(self.skeleton, config, adapter, may_save=may_save)
        self._found.move_to_end(key)
        while len(self._found) > MAX_CONFIGS:
            self._found.popitem(last=False)
        return self._found[key]


@dataclass(frozen=True, kw_only=True)
class AdapterWeights:
    """What a folder holds, in float32."""

    changes: dict[str, LayerChange]
    """By name of the linear layer."""
    saved: dict[str, Tensor]
    """Parameters of modules that the adapter brings whole, by their names."""

    @property
    def num_parameters(self) -> int:
        changed = sum(change.num_parameters for change in self.changes.values())
        return changed + sum(tensor.numel() for tensor in self.saved.values())


def read_changes(targets: Targets, adapter: Adapter) -> dict[str, LayerChange]:
    """`read_weights` of an adapter that brings no module whole."""
    return read_weights(targets, adapter, may_save=False).changes


def read_weights(targets: Targets, adapter: Adapter, *, may_save: bool = True) -> AdapterWeights:
    """What the adapter changes and brings.

    Raises `NotShared` for whatever is more than that, or does not fit.
    """
    config = read_json(adapter.folder, "adapter_config.json")
    _check_config(config)
    layers, whole = targets.of(adapter, config, may_save=may_save)
    reader = AdapterTensors(adapter.folder)
    read = _lora if config["peft_type"] == "LORA" else _ia3
    changes = {name: read(name, layer, reader) for name, layer in layers.items()}
    saved = {}
    if may_save:
        saved = {
            f"{name}.{key}": reader.take(f"{name}.{key}", parameter.shape)
            for name in whole
            for key, parameter in targets.skeleton.get_submodule(name).named_parameters()
        }
    else:
        changes |= _saved(targets.skeleton, config.get("modules_to_save") or (), reader)
        changes |= _with_tables(targets.skeleton, changes, reader)
    changes |= _with_biases(targets.skeleton, changes, reader)
    reader.finish("change of a linear layer that its config names")
    return AdapterWeights(changes=changes, saved=saved)


@dataclass(frozen=True, kw_only=True)
class _Target:
    """How an adapter changes one layer."""

    num_inputs: int
    num_outputs: int
    rank: int = 0
    scaling: float = 1.0
    has_bias: bool = False
    is_dora: bool = False
    is_embedding: bool = False
    is_feedforward: bool = False
    """Of IA3: whether the input is scaled."""


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


def _targets(
    skeleton: PreTrainedModel, config: Mapping[str, Any], adapter: Adapter, *, may_save: bool
) -> tuple[dict[str, _Target], list[str]]:
    """Layers by name, and names of modules that the folder has whole."""
    plain = plain_targets(skeleton, config, adapter.modules_to_save)
    if plain is None:
        return _targets_by_peft(skeleton, adapter, may_save=may_save)
    targets, heads = plain
    layers = {
        name: _Target(
            num_inputs=skeleton.get_submodule(name).in_features,
            num_outputs=skeleton.get_submodule(name).out_features,
            rank=config["r"],
            scaling=config["lora_alpha"] / config["r"],
        )
        for name in sorted(targets)
    }
    return layers, sorted(heads)


def _targets_by_peft(
    skeleton: PreTrainedModel, adapter: Adapter, *, may_save: bool
) -> tuple[dict[str, _Target], list[str]]:
    """As PEFT's own rules find them. The skeleton does not change."""
    from peft import PeftConfig, inject_adapter_in_model
    from peft.tuners.ia3 import Linear as Ia3Linear
    from peft.tuners.lora import Embedding as LoraEmbedding
    from peft.tuners.lora import Linear as LoraLinear
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    module = copy.deepcopy(skeleton)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = PeftConfig.from_pretrained(str(adapter.folder))
            if may_save:
                config.modules_to_save = list(adapter.modules_to_save) or None
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
    whole = [name for name, part in module.named_modules() if isinstance(part, ModulesToSaveWrapper)]
    for name, layer in layers.items():
        if may_save and any(name.startswith(f"{saved}.") for saved in whole):
            raise NotShared(f"it both changes and replaces {name.split('.')[0]}")
        if not may_save and type(layer) is LoraEmbedding and name == embedding and not layer.use_dora[NAME]:
            continue
        if type(layer) not in (LoraLinear, Ia3Linear) or type(layer.get_base_layer()) not in (nn.Linear, Conv1D):
            raise NotShared(f"it changes {name}, which is no linear layer")
    return {name: _target(layer) for name, layer in layers.items()}, whole


def _target(layer: Any) -> _Target:
    """Of PEFT's layer."""
    is_embedding = isinstance(layer.get_base_layer(), nn.Embedding)
    num_inputs, num_outputs = layer.in_features, layer.out_features
    if is_embedding:
        num_inputs, num_outputs = layer.get_base_layer().weight.shape
    sizes = {"num_inputs": num_inputs, "num_outputs": num_outputs}
    if not hasattr(layer, "lora_bias"):
        return _Target(**sizes, is_feedforward=layer.is_feedforward)
    return _Target(
        **sizes,
        rank=layer.r[NAME],
        scaling=float(layer.scaling[NAME]),
        has_bias=layer.lora_bias[NAME],
        is_dora=layer.use_dora[NAME],
        is_embedding=is_embedding,
    )


def _lora(name: str, layer: _Target, tensors: AdapterTensors) -> LayerChange:
    names = ("lora_embedding_A", "lora_embedding_B") if layer.is_embedding else ("lora_A.weight", "lora_B.weight")
    a_RK, b_NR = (tensors.take(f"{name}.{tensor}") for tensor in names)
    scaling, rank, num_outputs, num_inputs = layer.scaling, layer.rank, layer.num_outputs, layer.num_inputs
    if a_RK.shape != (rank, num_inputs) or b_NR.shape != (num_outputs, rank):
        raise NotShared(
            f"its matrices for {name} have the shapes {list(a_RK.shape)} and {list(b_NR.shape)}, where rank {rank} on "
            f"this base takes {[rank, num_inputs]} and {[num_outputs, rank]}"
        )
    bias_N = tensors.take(f"{name}.lora_B.bias") * scaling if layer.has_bias else None
    magnitude = f"{name}.lora_magnitude_vector"
    magnitude_N = tensors.find(magnitude, f"{magnitude}.weight") if layer.is_dora else None
    if layer.is_dora and magnitude_N is None:
        raise NotShared(f"it lacks {magnitude}")
    if magnitude_N is not None and bias_N is not None:
        raise NotShared("it combines use_dora and lora_bias")
    return LayerChange(
        a_RK=a_RK,
        b_NR=b_NR * scaling,
        magnitude_N=None if magnitude_N is None else magnitude_N.flatten(),
        added_N=bias_N,
    )


def _ia3(name: str, layer: _Target, tensors: AdapterTensors) -> LayerChange:
    scale = tensors.take(f"{name}.ia3_l").flatten()
    return LayerChange(in_K=scale) if layer.is_feedforward else LayerChange(out_N=scale)


def _saved(skeleton: PreTrainedModel, endings: Sequence[str], tensors: AdapterTensors) -> dict[str, LayerChange]:
    """Layers that the adapter brings whole, found as PEFT finds them: by the ends of their names."""
    found = {}
    for name, part in skeleton.named_modules():
        if not is_saved(name, endings):
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
    skeleton: PreTrainedModel, changes: Mapping[str, LayerChange], tensors: AdapterTensors
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
    skeleton: PreTrainedModel, changes: Mapping[str, LayerChange], tensors: AdapterTensors
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
