"""How many blocks the KV cache gets; knows bytes, not layouts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from server import machine
from server.config import ModelConfig
from server.engine.batch_inputs import Row
from server.engine.context import NO_CONTEXT, Context
from server.engine.model_runner import ModelRunner
from server.engine.sources import held_source
from server.errors import EXIT_MODEL, ConfigurationError

log = logging.getLogger("sluice.engine")

GIB = 1024**3

LEAST_TOKENS = 2048
"""A cache for fewer tokens, of a model that has positions for more, is taken for a mistake."""

# Several models and the front share a machine, and every worker measures on its own: each takes a modest part, and
# on a large machine no more than keeps some hundred thousand tokens of a small model.
CPU_PART = 0.3
CPU_MOST_BYTES = 4 * GIB
# The rest of a GPU is for what the driver and libraries take.
CUDA_PART = 0.9
CUDA_CONTEXT_BYTES = GIB // 2
"""What a process takes of a GPU before it has a tensor there."""


@dataclass(frozen=True, kw_only=True)
class CudaShare:
    """Which part of a GPU is one model's, for all that its process holds there."""

    num_models: int = 1
    """Models of this server that share the GPU, each of which has the same part."""
    step_tokens: int = 2048
    """Most new tokens in a step."""

    def measure(self, make_runner: Callable[[int], ModelRunner], max_model_len: int, block_size: int) -> int:
        """Bytes for the cache of a model that is loaded; ``make_runner`` takes a number of blocks."""
        tokens = min(max_model_len, self.step_tokens)
        runner = make_runner(sum(len(row.block_table) for row in _largest_step(self, tokens, block_size)))
        # What was packed and checked before is free again, and torch keeps it until it is told not to.
        torch.cuda.empty_cache()
        reads_source = runner.source_vocab_size > 0
        peak_bytes = _peak_bytes(runner, _largest_step(self, tokens, block_size, reads_source=reads_source))
        device = runner.device
        del runner
        torch.cuda.empty_cache()
        return self.room(device, torch.cuda.memory_reserved(device), peak_bytes)

    def room(self, device: torch.device, held_bytes: int, peak_bytes: int) -> int:
        """Bytes for the cache of a model that holds ``held_bytes`` and whose largest step takes ``peak_bytes`` more.

        Not what happens to be free: the other models may not have allocated theirs yet.
        """
        free, total = torch.cuda.mem_get_info(device)
        share = int(CUDA_PART * total) // self.num_models
        room = max(0, min(share - CUDA_CONTEXT_BYTES - held_bytes, free) - peak_bytes)
        log.info(
            "%s has %.2f GiB and %.2f of them are free; of this model's 1/%d, %.2f GiB are for its weights, "
            "%.2f for its largest step and %.2f for its KV cache",
            device,
            *(num_bytes / GIB for num_bytes in (total, free)),
            self.num_models,
            *(num_bytes / GIB for num_bytes in (held_bytes, peak_bytes, room)),
        )
        return room


@torch.inference_mode()
def _peak_bytes(runner: ModelRunner, rows: Sequence[Row]) -> int:
    """What a step takes on a GPU beside weights and cache."""
    before = torch.cuda.memory_allocated(runner.device)
    torch.cuda.reset_peak_memory_stats(runner.device)
    runner.forward(rows)
    for row in rows:
        runner.release(row.key)
        runner.release_source(row.key)
    return torch.cuda.max_memory_allocated(runner.device) - before


def _largest_step(share: CudaShare, max_model_len: int, block_size: int, *, reads_source: bool = False) -> list[Row]:
    """Prompts as long as the model allows, scored at every token; with ``reads_source`` after sources as long."""
    rows = []
    first_block = 0
    for key, start in enumerate(range(0, share.step_tokens, max_model_len)):
        length = min(max_model_len, share.step_tokens - start)
        table = range(first_block, first_block + -(-length // block_size))
        ids = [0] * length
        context = Context(source=held_source(ids, key)) if reads_source else NO_CONTEXT
        rows.append(Row(key=key, token_ids=ids, num_computed=0, block_table=table, num_logits=length, context=context))
        first_block = table.stop
    return rows


def num_blocks(
    config: ModelConfig,
    block_bytes: int,
    max_model_len: int,
    cuda_room: Callable[[], int] | None = None,
    *,
    kept_bytes: int = 0,
) -> int:
    """Blocks that fit the configured or the free memory: at least one longest sequence, at most what can be used.

    ``cuda_room`` measures the bytes on a GPU, where the cache is to be on one. Free memory is also for ``kept_bytes``
    that the runner keeps between steps.

    Where ``max_model_len`` is the model's own limit and nobody's wish, fewer blocks will do: the longest sequence is
    then what the cache holds.
    """
    per_sequence = -(-max_model_len // config.block_size)
    least = per_sequence if config.max_model_len else min(per_sequence, -(-LEAST_TOKENS // config.block_size))
    if config.kv_cache_gib:
        budget = int(config.kv_cache_gib * GIB)
    elif cuda_room is not None:
        budget = max(0, cuda_room() - kept_bytes)
    else:
        budget = max(0, min(int(CPU_PART * machine.free_bytes()), CPU_MOST_BYTES) - kept_bytes)
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


def fitting_lengths(max_model_len: int, max_source_len: int, runner: ModelRunner) -> tuple[int, int]:
    """The most tokens of a sequence and of its source, where the cache holds fewer than both of the model's own.

    Neither loses while it has less than half of the cache.
    """
    room = runner.num_blocks * runner.block_size
    max_source_len = min(max_source_len, room - min(max_model_len, room // 2))
    return min(max_model_len, room - max_source_len), max_source_len
