"""Quantised weights in a module that another executor runs, and what they and a quantised cache cost in numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from torch import nn

from server.config import ModelConfig
from server.engine import quality
from server.engine.model_runner import ModelRunner
from server.errors import EXIT_MODEL, ConfigurationError
from server.native.linear import Linear
from server.number_types import KvDtype, Quantize

log = logging.getLogger("sluice.engine")


def quantise_linears(module: nn.Module, quantize: Quantize) -> None:
    """Replace every packed linear by a quantised one. Raises ValueError where there is none or one cannot be."""
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is Linear:
                setattr(parent, name, Linear(child.dense_weight(), child.bias, quantize=quantize))
                count += 1
    if not count:
        raise ValueError("It has no packed products.")


def quantised(
    config: ModelConfig,
    make_runner: Callable[[int], ModelRunner],
    quantise: Callable[[Quantize], None],
    sequences: Sequence[Sequence[int]],
) -> float | None:
    """Quantise, if ``config`` asks for it, and say what it cost. ``make_runner`` takes a number of blocks.

    Returns the mean divergence of `quality.Loss`; None where nothing was asked for.
    """
    if config.quantize == "none":
        return None
    num_blocks = quality.num_blocks(sequences, config.block_size)
    before = list(quality.logprobs(make_runner(num_blocks), sequences))
    try:
        quantise(config.quantize)
    except ValueError as error:
        raise ConfigurationError(
            f"Model {config.name} cannot be quantised to {config.quantize}: {error} Set quantize to none.",
            exit_code=EXIT_MODEL,
        ) from error
    lost = quality.loss(before, quality.logprobs(make_runner(num_blocks), sequences))
    _log(config, f"in {config.quantize}", lost)
    return lost.kl


def cache_loss(
    config: ModelConfig, make_runner: Callable[[int, KvDtype], ModelRunner], sequences: Sequence[Sequence[int]]
) -> float | None:
    """What a cache in ``config.kv_dtype`` costs beside the model's own type, whatever the weights are in.

    ``make_runner`` takes a number of blocks. Returns the mean divergence of `quality.Loss`; None for the own type.
    """
    if config.kv_dtype == "auto":
        return None
    num_blocks = quality.num_blocks(sequences, config.block_size)
    before, after = (quality.logprobs(make_runner(num_blocks, kind), sequences) for kind in ("auto", config.kv_dtype))
    lost = quality.loss(before, after)
    _log(config, f"with a KV cache in {config.kv_dtype}", lost)
    return lost.kl


def _log(config: ModelConfig, what: str, lost: quality.Loss) -> None:
    log.info(
        "model %s %s: the next token's distribution moves by %.4f nats on average, and its most likely token is the "
        "same at %.1f %% of all places",
        config.name,
        what,
        lost.kl,
        100 * lost.same_top,
    )
