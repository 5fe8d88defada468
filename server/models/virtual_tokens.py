"""PEFT folders of virtual tokens: prompt tuning, P-tuning, multitask prompt tuning and prefix tuning.

PEFT saves what its training network computes, so that no network is left here.

Dimension key
    N  virtual tokens
    D  width of the embeddings
    H  key/value heads, K width of a head, L layers
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from server.models.adapter import Adapter
from server.models.adapter_tensors import AdapterTensors
from server.models.describe import read_json
from server.modules.adapted import NotShared

EMBEDDINGS = "prompt_embeddings"
COLUMNS, ROWS = "prefix_task_cols", "prefix_task_rows"
"""Of multitask prompt tuning: the product of both scales the embeddings."""

KNOWN = {
    "num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers", "num_transformer_submodules",
    "encoder_hidden_size", "encoder_dropout", "encoder_num_layers", "encoder_reparameterization_type",
    "prefix_projection", "prompt_tuning_init", "prompt_tuning_init_text", "prompt_tuning_init_state_dict_path",
    "prompt_tuning_init_task", "tokenizer_name_or_path", "tokenizer_kwargs", "num_ranks", "num_tasks", "init_weights",
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision", "task_type",
}  # fmt: skip
"""Fields of the config that are read here, or that training alone reads. All others have to be unset."""


@dataclass(frozen=True, kw_only=True)
class VirtualTokens:
    """What an adapter puts before every prompt, in float32: embeddings, or keys and values of every layer."""

    num_tokens: int
    embeddings_ND: Tensor | None = None
    keys_values_L2HNK: Tensor | None = None

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for tensor in (self.embeddings_ND, self.keys_values_L2HNK) if tensor is not None)


def read_virtual_tokens(adapter: Adapter) -> VirtualTokens:
    """Raises `NotShared` where the folder cannot be served."""
    config = read_json(adapter.folder, "adapter_config.json")
    for name in sorted(config.keys() - KNOWN):
        if config[name]:
            raise NotShared(f"its config sets {name}")
    tensors = AdapterTensors(adapter.folder)
    embeddings = tensors.take(EMBEDDINGS)
    if config["peft_type"] == "MULTITASK_PROMPT_TUNING":
        embeddings = embeddings * _task_scale(tensors)
    tensors.finish(f"part of a {config['peft_type']} adapter")
    num_tokens = config.get("num_virtual_tokens")
    if embeddings.dim() != 2 or len(embeddings) != num_tokens or not num_tokens:
        raise NotShared(
            f"its {EMBEDDINGS} have the shape {list(embeddings.shape)} and num_virtual_tokens is {num_tokens}"
        )
    if config["peft_type"] != "PREFIX_TUNING":
        return VirtualTokens(num_tokens=num_tokens, embeddings_ND=embeddings)
    return VirtualTokens(num_tokens=num_tokens, keys_values_L2HNK=_keys_values(embeddings, config))


def _task_scale(tensors: AdapterTensors) -> Tensor:
    """``[N, D]``"""
    columns, rows = tensors.take(COLUMNS), tensors.take(ROWS)
    if len(columns) != 1 or len(rows) != 1:
        raise NotShared(f"it holds {len(columns)} tasks, and requests name none: save it with one task")
    return columns[0] @ rows[0]


def _keys_values(embeddings: Tensor, config: Mapping[str, Any]) -> Tensor:
    num_layers, num_heads, width = (config.get(name) for name in ("num_layers", "num_attention_heads", "token_dim"))
    if not (num_layers and num_heads and width) or embeddings.shape[1] != 2 * num_layers * width or width % num_heads:
        raise NotShared(
            f"its {EMBEDDINGS} have the shape {list(embeddings.shape)}, which is not that of keys and values of "
            f"{num_layers} layers with {num_heads} heads and {width} values a token"
        )
    parts = embeddings.view(len(embeddings), num_layers, 2, num_heads, width // num_heads)
    return parts.permute(1, 2, 3, 0, 4).contiguous()
