"""Whether a model's KV cache can be in another type than the model's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from server.config import ModelConfig
from server.engine.attention.native import NativeAttention
from server.engine.executors.generic import probe
from server.errors import EXIT_MODEL, ConfigurationError
from server.modules.attention import LayerSpec
from server.modules.attention_calls import ATTENTION, set_attention
from server.modules.unsupported import FORWARD_FAILURES, Unsupported
from server.out_of_memory import raise_if_memory


def require(module: PreTrainedModel, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Raise `ConfigurationError` where it cannot. This calls the module, which needs no weights, on one short input."""
    _require_cpu(config, device)
    set_attention(module, ATTENTION)
    try:
        specs = probe(module)
    except (Unsupported, *FORWARD_FAILURES) as error:
        raise_if_memory(error)
        raise refusal(config, str(error)) from error
    require_kernels(specs, config, dtype, device)


def require_kernels(specs: Sequence[LayerSpec], config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """The same for layers that are known."""
    _require_cpu(config, device)
    if problem := NativeAttention.obstacle(specs, config.block_size, dtype, device):
        raise refusal(config, problem)


def _require_cpu(config: ModelConfig, device: torch.device) -> None:
    if device.type != "cpu":
        raise refusal(config, f"its device is {device}, and {config.kv_dtype} requires the CPU kernels")


def refusal(config: ModelConfig, problem: str) -> ConfigurationError:
    """``problem`` is the end of a sentence."""
    return ConfigurationError(
        f"Model {config.name} cannot have its KV cache in {config.kv_dtype}: {problem}. Set kv_dtype to auto.",
        exit_code=EXIT_MODEL,
    )
