"""From a loaded module to a runner: which executor serves it, checked with numbers, and how large its cache is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from server.config import ModelConfig
from server.engine import memory, selfcheck
from server.engine.attention.choose import choose_attention
from server.engine.batch_inputs import Row
from server.engine.executors.compat import CompatRunner
from server.engine.executors.deterministic import DeterministicRunner, steady, unsteady
from server.engine.executors.generic import ATTENTION, GenericRunner, Unsupported, probe, set_attention
from server.engine.kv_cache import LayerSpec
from server.engine.model_runner import ModelRunner
from server.engine.selfcheck import Reference
from server.errors import EXIT_MODEL, ConfigurationError

log = logging.getLogger("sluice.engine")

FORWARD_FAILURES = (
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    KeyError,
    AssertionError,
    NotImplementedError,
)
"""What a module raises that is called in a way it was not made for."""


def build_runner(
    module: PreTrainedModel,
    config: ModelConfig,
    max_model_len: int,
    *,
    pack: Callable[[PreTrainedModel], Any] | None = None,
) -> ModelRunner:
    """Choose the executor that the numbers allow and size its cache.

    ``pack`` may replace the module's linears by faster ones; it is called once the plain module has shown what its
    logits are, so that the check covers the replacement too.
    """
    module.requires_grad_(False)
    plain = module.config._attn_implementation
    set_attention(module, "eager")
    try:
        expected = selfcheck.reference(module, max_model_len)
    except FORWARD_FAILURES as error:
        raise ConfigurationError(
            f"Model {config.name} cannot be served: its forward pass fails ({type(error).__name__}: {error}). "
            "Check that its config and weights belong together.",
            exit_code=EXIT_MODEL,
        ) from error
    if pack is not None:
        pack(module)
    if config.deterministic:
        return _deterministic(module, config, max_model_len, expected)
    if config.executor != "compat":
        try:
            return _generic(module, config, max_model_len, expected)
        except Unsupported as error:
            reason = str(error)
        if config.executor == "generic":
            raise ConfigurationError(
                f"Model {config.name} cannot run in the generic executor: {reason}. Set executor to auto.",
                exit_code=EXIT_MODEL,
            )
        log.warning("model %s runs in the compat executor: %s", config.name, reason)
    return _compat(module, config, max_model_len, expected, plain)


def _deterministic(
    module: PreTrainedModel, config: ModelConfig, max_model_len: int, expected: Reference
) -> DeterministicRunner:
    """Only over the generic executor, whose products and attention are known."""
    steady(module)
    try:
        runner = _generic(module, config, max_model_len, expected)
        problem = unsteady(module)
    except Unsupported as error:
        problem = str(error)
    if problem or config.executor == "compat":
        raise ConfigurationError(
            f"Model {config.name} cannot be served deterministically: {problem or 'executor is compat'}. "
            "Leave deterministic off, or executor on auto.",
            exit_code=EXIT_MODEL,
        )
    return DeterministicRunner(runner)


def _generic(module: PreTrainedModel, config: ModelConfig, max_model_len: int, expected: Reference) -> GenericRunner:
    """Raises `Unsupported` where the module does not fit or its logits come out different."""
    set_attention(module, ATTENTION)
    try:
        specs = probe(module)
        # A pool of its own, so that the check leaves nothing behind in the one that serves.
        checked = _generic_runner(module, config, specs, expected.num_blocks(config.block_size), expected)
        problem = selfcheck.difference(checked, expected)
    except FORWARD_FAILURES as error:
        raise Unsupported(f"its forward pass fails there ({type(error).__name__}: {error})") from error
    if problem:
        raise Unsupported(problem)
    block_bytes = sum(spec.block_bytes(config.block_size, module.dtype) for spec in specs)
    num_blocks = memory.num_blocks(config, block_bytes, max_model_len, module.device)
    return _generic_runner(module, config, specs, num_blocks, expected)


def _generic_runner(
    module: PreTrainedModel, config: ModelConfig, specs: list[LayerSpec], num_blocks: int, expected: Reference
) -> GenericRunner:
    backend = choose_attention(
        specs, num_blocks, config.block_size, module.dtype, module.device, deterministic=config.deterministic
    )
    return GenericRunner(
        module,
        specs,
        backend,
        num_blocks=num_blocks,
        block_size=config.block_size,
        vocab_size=expected.vocab_size,
    )


def _compat(
    module: PreTrainedModel, config: ModelConfig, max_model_len: int, expected: Reference, plain: str
) -> CompatRunner:
    """``plain`` is the attention that the module came with."""
    make = partial(CompatRunner, module, block_size=config.block_size, vocab_size=expected.vocab_size)
    # Some recurrent models take up their state again with one token only. Falcon's ALiBi is rounded to 16 bits, in
    # each attention at another place.
    for attention, token_by_token in ((plain, False), (plain, True), ("eager", False)):
        set_attention(module, attention)
        problem, block_bytes = _check_compat(
            make(num_blocks=0, block_bytes=0, resumes_token_by_token=token_by_token), expected
        )
        if problem is None:
            break
    if problem:
        raise ConfigurationError(
            f"Model {config.name} cannot be served: step by step it does not give its own logits ({problem}). "
            "Check that its architecture is a decoder that transformers can generate with.",
            exit_code=EXIT_MODEL,
        )
    return make(
        num_blocks=memory.num_blocks(config, block_bytes, max_model_len, module.device),
        block_bytes=block_bytes,
        resumes_token_by_token=token_by_token,
    )


def _check_compat(runner: CompatRunner, expected: Reference) -> tuple[str | None, int]:
    """What is wrong, and the bytes that a block's worth of tokens holds."""
    try:
        return selfcheck.difference(runner, expected), _cache_bytes_per_block(runner, runner.block_size)
    except FORWARD_FAILURES as error:
        return f"its forward pass fails: {type(error).__name__}: {error}", 0


@torch.inference_mode()
def _cache_bytes_per_block(runner: CompatRunner, block_size: int) -> int:
    """What a sequence of one block holds in the model's own cache."""
    ids = [1] * block_size
    runner.forward([Row(key=0, token_ids=ids, num_computed=0, block_table=[0])])
    size = runner.cache_bytes()
    runner.release(0)
    return max(1, size)
