"""From a loaded module to a runner: which executor serves it, checked with numbers, and how large its cache is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from server.config import ModelConfig
from server.engine import selfcheck, source_check
from server.engine.executors import cache_type
from server.engine.executors.build_pair import fused_pair
from server.engine.executors.compat import CompatRunner
from server.engine.executors.compiled import compile_layers
from server.engine.executors.cuda_graphs import with_graphs
from server.engine.executors.deterministic import DeterministicRunner, steady, unsteady
from server.engine.executors.encoder_decoder import EncoderDecoderRunner
from server.engine.executors.fused import prepare
from server.engine.executors.fused.runner import FusedRunner
from server.engine.executors.generic import GenericRunner, probe
from server.engine.executors.lengthwise import install
from server.engine.executors.quantising import cache_loss, quantise_linears, quantised
from server.engine.executors.subject import Subject, TokenIds
from server.engine.memory import CudaShare
from server.engine.model_runner import ModelRunner
from server.engine.selfcheck import Reference
from server.errors import EXIT_MODEL, ConfigurationError
from server.module_state import ModuleState
from server.modules.attention import LayerSpec
from server.modules.attention_calls import ATTENTION, set_attention
from server.modules.unsupported import FORWARD_FAILURES, Unsupported
from server.number_types import KvDtype
from server.out_of_memory import raise_if_memory

log = logging.getLogger("sluice.engine")


def build_runner(
    module: PreTrainedModel,
    config: ModelConfig,
    max_model_len: int,
    *,
    max_source_len: int = 0,
    pack: Callable[[PreTrainedModel], Any] | None = None,
    quality_ids: TokenIds = (),
    share: CudaShare = CudaShare(),  # noqa: B008  # it cannot be changed
) -> ModelRunner:
    """Choose the executor that the numbers allow and size its cache. The module's weights are the runner's from here.

    ``pack`` may replace the module's linears by faster ones; it is called once the plain module has shown what its
    logits are, so that the check covers the replacement too. ``quality_ids`` are texts on which quantised weights are
    compared with those they are made of. ``share`` is the model's part of a GPU. ``max_source_len`` is the most tokens
    that an encoder reads; 0 for models without one.
    """
    module.requires_grad_(False)
    plain = module.config._attn_implementation
    set_attention(module, "eager")
    try:
        lengthwise = None if max_source_len else install(module, max_model_len)
        state = ModuleState(module)
        rule = None if lengthwise is None else lengthwise.rule
        if max_source_len:
            expected = source_check.reference(module, max_model_len, max_source_len, state.restore)
        else:
            expected = selfcheck.reference(module, max_model_len, rule, state.restore)
    except FORWARD_FAILURES as error:
        raise_if_memory(error)
        raise ConfigurationError(
            f"Model {config.name} cannot be served: its forward pass fails ({type(error).__name__}: {error}). "
            "Check that its config and weights belong together.",
            exit_code=EXIT_MODEL,
        ) from error
    subject = Subject(
        module=module,
        config=config,
        max_model_len=max_model_len,
        max_source_len=max_source_len,
        expected=expected,
        quality_ids=quality_ids or expected.sequences,
        lengthwise=lengthwise,
        share=share,
    )
    if config.kv_dtype != "auto" and not max_source_len:
        cache_type.require(module, config, module.dtype, module.device)
        state.restore()
    if max_source_len:
        return _encoder_decoder(subject, plain, pack)
    if config.executor in ("auto", "fused") and not config.compile:
        try:
            return _fused(subject)
        except Unsupported as error:
            subject.refused("fused", error)
        finally:
            state.restore()
    if pack is not None:
        pack(module)
    if config.deterministic:
        return _deterministic(subject)
    if config.executor in ("auto", "generic"):
        try:
            return _generic(subject)
        except Unsupported as error:
            subject.refused("generic", error)
            log.warning("model %s runs in the compat executor: %s", config.name, error)
    if config.compile:
        log.warning("model %s is not compiled: only the generic executor has layers to compile", config.name)
    return _compat(subject, plain)


def _fused(subject: Subject) -> ModelRunner:
    """Raises `Unsupported` where the layout is not known, or its numbers come out different or not steady."""
    module, config, expected = subject.module, subject.config, subject.expected
    make_backend = subject.backend
    set_attention(module, ATTENTION)
    try:
        prepared = prepare(
            module,
            probe(module),
            expected,
            make_backend,
            num_positions=subject.max_model_len,
            block_size=config.block_size,
        )
    except FORWARD_FAILURES as error:
        raise_if_memory(error)
        raise Unsupported(f"its layout fails there ({type(error).__name__}: {error})") from error
    if config.deterministic and (problem := prepared.unsteady()):
        prepared.restore()
        raise Unsupported(problem)
    kl = quantised(config, prepared.small_runner, prepared.quantise, subject.quality_ids)
    specs = prepared.decoder.specs

    def make_runner(num_blocks: int, kv_dtype: KvDtype) -> FusedRunner:
        return prepared.runner(make_backend(specs, num_blocks, kv_dtype), num_blocks)

    cache_kl = cache_loss(config, make_runner, subject.quality_ids)
    num_blocks = subject.num_blocks(subject.block_bytes(specs), prepared.small_runner)
    runner = make_runner(num_blocks, config.kv_dtype)
    runner.quantization_kl, runner.kv_cache_kl = kl, cache_kl
    return with_graphs(runner, config)


def _deterministic(subject: Subject) -> DeterministicRunner:
    """Over the generic executor, row by row where its products and its attention need it."""
    module, config = subject.module, subject.config
    steady(module)
    try:
        runner = _generic(subject)
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


def _generic(subject: Subject) -> ModelRunner:
    """Raises `Unsupported` where the module does not fit or its logits come out different."""
    module, config, expected = subject.module, subject.config, subject.expected
    set_attention(module, ATTENTION)
    state = ModuleState(module)
    try:
        specs = probe(module)
        expected.require_tried(specs, subject.max_model_len)
        # A pool of its own, so that the check leaves nothing behind in the one that serves.
        num_blocks = expected.num_blocks(config.block_size)
        checked = _generic_runner(subject, specs, num_blocks)
        problem = selfcheck.difference(checked, expected) or selfcheck.windowed_difference(
            lambda short: _generic_runner(subject, short.specs(specs), num_blocks), module, expected
        )
    except FORWARD_FAILURES as error:
        raise_if_memory(error)
        raise Unsupported(f"its forward pass fails there ({type(error).__name__}: {error})") from error
    finally:
        changed = state.restore()
    if problem:
        raise Unsupported(problem)
    if changed:
        raise Unsupported(f"its forward pass changes {changed[0]}")
    if config.compile:
        compile_layers(module, config.name, lambda: selfcheck.difference(checked, expected))
    make_runner = partial(_generic_runner, subject, specs)
    kl = quantised(config, make_runner, partial(quantise_linears, module), subject.quality_ids)
    cache_kl = cache_loss(config, make_runner, subject.quality_ids)
    runner = make_runner(subject.num_blocks(subject.block_bytes(specs), make_runner), config.kv_dtype)
    runner.quantization_kl, runner.kv_cache_kl = kl, cache_kl
    return with_graphs(runner, config)


def _generic_runner(
    subject: Subject, specs: list[LayerSpec], num_blocks: int, kv_dtype: KvDtype = "auto"
) -> GenericRunner:
    module, config = subject.module, subject.config
    return GenericRunner(
        module,
        specs,
        subject.backend(specs, num_blocks, kv_dtype),
        num_blocks=num_blocks,
        block_size=config.block_size,
        vocab_size=subject.expected.vocab_size,
        lengthwise=subject.lengthwise,
    )


def _encoder_decoder(subject: Subject, plain: str, pack: Callable[[PreTrainedModel], Any] | None) -> ModelRunner:
    """``plain`` is the attention that the module came with."""
    config, state = subject.config, ModuleState(subject.module)
    if subject.module.dtype == torch.float16 and hasattr(subject.module.config, "relative_attention_num_buckets"):
        raise ConfigurationError(
            f"Model {config.name} cannot run in float16, which overflows in models of T5's kind. "
            "Set dtype to float32 or bfloat16.",
            exit_code=EXIT_MODEL,
        )
    if config.executor in ("auto", "fused") and not config.compile:
        try:
            return fused_pair(subject)
        except Unsupported as error:
            subject.refused("fused", error)
        finally:
            state.restore()
    if config.executor not in ("auto", "compat") or config.compile:
        wanted, setting = ("a compiled", "compile") if config.compile else (f"the {config.executor}", "executor")
        raise ConfigurationError(
            f"Model {config.name} is an encoder-decoder, which cannot run in {wanted} executor. "
            f"Remove {setting} from its settings.",
            exit_code=EXIT_MODEL,
        )
    if pack is not None:
        pack(subject.module)
    return _compat(subject, plain)


def _compat(subject: Subject, plain: str) -> CompatRunner:
    """``plain`` is the attention that the module came with."""
    module, config, expected = subject.module, subject.config, subject.expected
    if config.kv_dtype != "auto":
        raise cache_type.refusal(config, "it runs in the compat executor, where the model holds its cache itself")
    make = partial(
        EncoderDecoderRunner if subject.max_source_len else CompatRunner,
        module,
        block_size=config.block_size,
        vocab_size=expected.vocab_size,
        lengthwise=subject.lengthwise,
    )
    # Some recurrent models take up their state again with one token only. Falcon's ALiBi is rounded to 16 bits, in
    # each attention at another place.
    state = ModuleState(module)
    for attention, token_by_token in ((plain, False), (plain, True), ("eager", False)):
        set_attention(module, attention)
        make_checked = partial(make, num_blocks=0, block_bytes=0, resumes_token_by_token=token_by_token, restores=True)
        problem, block_bytes = _check_compat(make_checked, module, expected)
        changed = state.restore()
        if problem is None:
            break
    if problem:
        raise ConfigurationError(
            f"Model {config.name} cannot be served: step by step it does not give its own logits ({problem}). "
            "Check that its architecture is a decoder that transformers can generate with.",
            exit_code=EXIT_MODEL,
        )
    make = partial(make, block_bytes=block_bytes, resumes_token_by_token=token_by_token, restores=bool(changed))

    def make_runner(num_blocks: int) -> CompatRunner:
        return make(num_blocks=num_blocks)

    kl = quantised(config, make_runner, partial(quantise_linears, module), subject.quality_ids)
    runner = make_runner(subject.num_blocks(block_bytes, make_runner))
    runner.quantization_kl = kl
    return runner


def _check_compat(
    make: Callable[[], CompatRunner], module: PreTrainedModel, expected: Reference
) -> tuple[str | None, int]:
    """What is wrong, and the bytes that a block's worth of tokens holds."""
    runner = make()
    try:
        problem = selfcheck.difference(runner, expected)
        problem = problem or selfcheck.windowed_difference(lambda _short: make(), module, expected)
        return problem, runner.measure_block()
    except FORWARD_FAILURES as error:
        raise_if_memory(error)
        return f"its forward pass fails: {type(error).__name__}: {error}", 0
