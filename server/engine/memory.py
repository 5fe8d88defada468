"""How many blocks the KV cache gets; knows bytes, not layouts."""

from __future__ import annotations

import logging

import torch

from server import machine
from server.config import ModelConfig
from server.errors import EXIT_MODEL, ConfigurationError

log = logging.getLogger("sluice.engine")

GIB = 1024**3

LEAST_TOKENS = 2048
"""A cache for fewer tokens, of a model that has positions for more, is taken for a mistake."""

# Several models and the front share a machine, and every worker measures on its own: each takes a modest part, and
# on a large machine no more than keeps some hundred thousand tokens of a small model.
CPU_PART = 0.3
CPU_MOST_BYTES = 4 * GIB
# A GPU holds little beside models; what is left is for activations and for other workers' caches.
CUDA_PART = 0.6


def free_bytes(device: torch.device) -> int:
    """Memory that this process may still take on ``device``."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return machine.free_bytes()


def num_blocks(config: ModelConfig, block_bytes: int, max_model_len: int, device: torch.device) -> int:
    """Blocks that fit the configured or the free memory: at least one longest sequence, at most what can be used.

    Where ``max_model_len`` is the model's own limit and nobody's wish, fewer blocks will do: the longest sequence is
    then what the cache holds.
    """
    per_sequence = -(-max_model_len // config.block_size)
    least = per_sequence if config.max_model_len else min(per_sequence, -(-LEAST_TOKENS // config.block_size))
    if config.kv_cache_gib:
        budget = int(config.kv_cache_gib * GIB)
    elif device.type == "cuda":
        budget = int(CUDA_PART * free_bytes(device))
    else:
        budget = min(int(CPU_PART * free_bytes(device)), CPU_MOST_BYTES)
    blocks = min(budget // block_bytes, config.max_running * per_sequence)
    if blocks < least:
        raise ConfigurationError(
            f"Model {config.name} has no room for one sequence of {least * config.block_size} tokens: its KV cache "
            f"needs {least * block_bytes / GIB:.2f} GiB and {budget / GIB:.2f} GiB are given. "
            "Set kv_cache_gib higher, or max_model_len lower.",
            exit_code=EXIT_MODEL,
        )
    if blocks < per_sequence:
        log.warning(
            "model %s: the KV cache holds %d tokens of %d", config.name, blocks * config.block_size, max_model_len
        )
    return blocks
