"""An encoder-decoder in fused layers, checked with numbers."""

from __future__ import annotations

from server.engine import selfcheck
from server.engine.executors import cache_type
from server.engine.executors.fused.pair_runner import FusedPairRunner
from server.engine.executors.fused.prepare_pair import prepare_pair
from server.engine.executors.quantising import cache_loss, quantised
from server.engine.executors.subject import Subject
from server.engine.model_runner import ModelRunner
from server.engine.source_parts import MOST_BEGUN
from server.modules.unsupported import FORWARD_FAILURES, Unsupported
from server.number_types import KvDtype
from server.out_of_memory import raise_if_memory


def fused_pair(subject: Subject) -> ModelRunner:
    """Raises `Unsupported` where the layout is not known, or its numbers come out different or not steady."""
    module, config, expected = subject.module, subject.config, subject.expected
    make_backend = subject.backend
    sample = expected.samples[1]
    try:
        prepared = prepare_pair(module, sample.source_ids, sample.token_ids, make_backend, block_size=config.block_size)
    except FORWARD_FAILURES as error:
        raise_if_memory(error)
        raise Unsupported(f"its layout fails there ({type(error).__name__}: {error})") from error
    specs = prepared.packed.decoder.specs
    if config.kv_dtype != "auto":
        cache_type.require_kernels(specs, config, module.dtype, module.device)

    def make_runner(num_blocks: int, kv_dtype: KvDtype = "auto") -> FusedPairRunner:
        return FusedPairRunner(
            prepared.packed,
            make_backend(specs, num_blocks, kv_dtype),
            num_blocks=num_blocks,
            block_size=config.block_size,
            vocab_size=expected.vocab_size,
        )

    try:
        checked = make_runner(expected.num_blocks(config.block_size))
    except Unsupported:
        prepared.restore()
        raise
    problem = selfcheck.difference(checked, expected)
    if config.deterministic and not checked.is_row_invariant:
        problem = problem or "its products have no kernels whose rows do not depend on one another"
    if problem:
        prepared.restore()
        raise Unsupported(problem)
    kl = quantised(config, make_runner, prepared.quantise, subject.quality_ids)
    cache_kl = cache_loss(config, make_runner, subject.quality_ids)
    kept_bytes = MOST_BEGUN * subject.max_source_len * checked.encoder_passes.kept_bytes
    num_blocks = subject.num_blocks(subject.block_bytes(specs), make_runner, kept_bytes)
    runner = make_runner(num_blocks, config.kv_dtype)
    runner.quantization_kl, runner.kv_cache_kl = kl, cache_kl
    return runner
