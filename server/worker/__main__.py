"""`python -m server.worker`: loads one model and runs its engine. The only place where loading and engines meet."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from server import allocator
from server.config import ModelConfig
from server.protocol import LoadAdapter, Ready
from server.tasks import EMBED, TASKS
from server.vocabulary import TokenBytes
from server.worker import loop, process

NUM_TRIED_TEXTS = 3
"""With which each adapter of an encoder is tried."""

if TYPE_CHECKING:
    import torch

    from server.models.loader import LoadedModel


def build(
    model: ModelConfig, num_loading: int = 1, num_on_gpu: int = 1, adapters: Sequence[LoadAdapter] = ()
) -> tuple[loop.Engine, Ready]:
    """The engine for the model's task, and what the front must know of it.

    ``num_loading`` workers load meanwhile, and ``num_on_gpu`` models share a GPU if this one goes there. ``adapters``
    are served beside the model where they can be.
    """
    # Imported here: these take seconds, and the process must notice meanwhile that the front is gone.
    import torch

    from server.models import loader
    from server.models.device import choose_device, raise_if_does_not_fit
    from server.native import kernels
    from server.worker import kernel_trial

    num_threads = torch.get_num_threads()
    # More threads than processors wait for one another awake: that took longer than the work. Inductor writes their
    # number into what it compiles.
    torch.set_num_threads(num_threads if model.compile else max(1, num_threads // num_loading))
    kernel_trial.choose(model, torch.get_num_threads())
    try:
        loaded = loader.load(model)
        is_decoder = TASKS[loaded.task].is_decoder
        engine, ready = (
            _decoder(model, loaded, num_on_gpu, adapters) if is_decoder else _encoder(model, loaded, adapters)
        )
    except (MemoryError, RuntimeError) as error:
        raise_if_does_not_fit(error, model, choose_device(model))
        raise
    torch.set_num_threads(num_threads)
    kernels.set_num_threads(num_threads)
    # What lives as long as the process is not looked through again by every garbage collection between steps.
    gc.collect()
    gc.freeze()
    allocator.trim()
    return engine, ready


def _decoder(
    model: ModelConfig, loaded: LoadedModel, num_on_gpu: int, adapters: Sequence[LoadAdapter]
) -> tuple[loop.Engine, Ready]:
    from server.engine import reproducibility
    from server.engine.adapter_trial import try_all_steps
    from server.engine.engine import DecoderEngine, default_max_batch_tokens, default_token_budget
    from server.engine.executors.build import build_runner
    from server.engine.memory import CudaShare, fitting_lengths
    from server.engine.pacing import Pacing
    from server.engine.phrase_index import prepare_index
    from server.engine.prompt_lookup import Drafter
    from server.models.packed_linear import pack_linears
    from server.worker.adapters import DecoderReader, share

    max_batch_tokens = model.max_batch_tokens or default_max_batch_tokens(model.max_running)
    runner = build_runner(
        loaded.module,
        model,
        loaded.max_model_len,
        max_source_len=loaded.max_source_len,
        pack=pack_linears,
        quality_ids=_quality_ids(model, loaded),
        share=CudaShare(num_models=num_on_gpu, step_tokens=max_batch_tokens),
    )
    # A model with positions for more tokens than the whole cache has is served up to what the cache holds.
    max_model_len, max_source_len = fitting_lengths(loaded.max_model_len, loaded.max_source_len, runner)
    loaded = dataclasses.replace(loaded, max_model_len=max_model_len, max_source_len=max_source_len)
    vocabulary = TokenBytes(loaded.tokenizer.target or loaded.tokenizer, runner.vocab_size)
    prepare_index(vocabulary)
    reader = DecoderReader(loaded, runner, deterministic=model.deterministic)
    table, facts = share(adapters, model, reader, partial(try_all_steps, runner))
    pacing = Pacing()
    budget = None if model.max_batch_tokens else default_token_budget(runner.device, model.max_running)
    engine = DecoderEngine(
        runner,
        max_model_len=loaded.max_model_len,
        max_source_len=loaded.max_source_len,
        max_batch_tokens=max_batch_tokens,
        max_running=model.max_running,
        prefix_cache=model.prefix_cache,
        vocabulary=vocabulary,
        deterministic=model.deterministic,
        pacing=pacing,
        drafter=Drafter(pacing) if model.prompt_lookup == "auto" else None,
        token_budget=budget,
        adapters=table,
    )
    problem = reproducibility.problem(runner, deterministic=model.deterministic)
    ready = _ready(
        loaded,
        vocab_size=runner.vocab_size,
        source_vocab_size=runner.source_vocab_size,
        device=runner.device,
        dtype=runner.dtype,
        executor=runner.name,
        attention=runner.attention,
        quantization_kl=runner.quantization_kl,
        kv_dtype=model.kv_dtype,
        kv_cache_kl=runner.kv_cache_kl,
        reproducible=problem is None,
        reproducible_reason=problem,
        weight_bytes=runner.weight_bytes,
        kv_cache_bytes=runner.kv_cache_bytes,
        num_blocks=runner.num_blocks,
        block_size=runner.block_size,
        max_running=model.max_running,
        max_batch_tokens=max_batch_tokens,
        token_budget=0 if budget is None else budget.num_tokens,
        adapters=facts,
    )
    return engine, ready


def _quality_ids(model: ModelConfig, loaded: LoadedModel) -> list[list[int]]:
    """Prompts on which quantised weights, and a quantised cache, are compared with those they are made of."""
    from server.engine import quality
    from server.pieces import read_backend

    if model.quantize == "none" and model.kv_dtype == "auto":
        return []
    tokenizer = read_backend(loaded.tokenizer)
    return quality.token_ids(lambda text: tokenizer.encode(text).ids, loaded.max_model_len)


def _encoder(model: ModelConfig, loaded: LoadedModel, adapters: Sequence[LoadAdapter]) -> tuple[loop.Engine, Ready]:
    from server.encoder import quality
    from server.encoder.build import Wishes, build_forward
    from server.encoder.engine import EncoderEngine, default_max_batch_tokens, default_token_budget
    from server.encoder.trial import Frame
    from server.models.loader import may_narrow, product_dtype
    from server.models.packed_linear import pack_linears
    from server.native.linear import held_bytes
    from server.worker.adapters import share
    from server.worker.encoder_adapters import EncoderReader, try_adapter

    module, files = loaded.module, loaded.tokenizer
    device = module.device
    max_batch_tokens = model.max_batch_tokens or default_max_batch_tokens(device)
    dtype = product_dtype(model, device)
    sample = quality.sample(files, loaded.task, loaded.max_model_len)
    budget = None if model.max_batch_tokens else default_token_budget(device)
    forward = build_forward(
        module,
        pad_token_id=getattr(module.config.get_text_config(), "pad_token_id", None),
        # Adapters may take longer texts than vectors are made of.
        max_model_len=loaded.max_text_len,
        wishes=Wishes(
            executor=model.executor,
            dtype=dtype,
            quantize=model.quantize,
            has_tf32=device.type == "cuda" and model.dtype == "auto",
            may_narrow=may_narrow(model, loaded.task, device),
        ),
        pack=pack_linears,
        frame=Frame(files.prefix_ids, files.suffix_ids, files.gives_token_types),
        sample=sample,
        measure=quality.OF_VECTORS if loaded.task == EMBED.name else quality.OF_SCORES,
    )
    tried = sample[:NUM_TRIED_TEXTS]
    table, facts = share(adapters, model, EncoderReader(loaded, forward, tried), partial(try_adapter, forward, tried))
    engine = EncoderEngine(
        forward,
        task=loaded.task,
        max_batch_tokens=max_batch_tokens,
        max_model_len=loaded.max_text_len,
        token_budget=budget,
        adapters=table,
        sample=tried,
    )
    if budget is not None:
        engine.learn(sample)
    ready = _ready(
        loaded,
        vocab_size=module.get_input_embeddings().weight.shape[0],
        device=device,
        dtype=forward.dtype,
        dtype_reason=forward.dtype_reason,
        executor=forward.name,
        attention=forward.attention,
        batching=forward.batching,
        weight_bytes=held_bytes(module),
        max_batch_tokens=max_batch_tokens,
        token_budget=0 if budget is None else budget.num_tokens,
        adapters=facts,
    )
    return engine, ready


def _ready(loaded: LoadedModel, *, device: torch.device, dtype: torch.dtype, **of_engine: Any) -> Ready:
    from server.native import kernels

    return Ready(
        task=loaded.task,
        architecture=loaded.architecture,
        tokenizer=loaded.tokenizer,
        max_model_len=loaded.max_model_len,
        max_source_len=loaded.max_source_len,
        start_ids=loaded.start_ids,
        languages=loaded.languages,
        rewriting_tasks=loaded.rewriting_tasks,
        translation_prefix=loaded.translation_prefix,
        translation_options=loaded.translation_options,
        can_answer=loaded.can_answer,
        summary_prefix=loaded.summary_prefix,
        summary_options=loaded.summary_options,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        kernels=kernels.name() if device.type == "cpu" else None,
        num_parameters=loaded.num_parameters,
        generation_config=loaded.generation_config,
        labels=loaded.labels,
        embedding=loaded.embedding,
        problem_type=loaded.problem_type,
        attribution=loaded.attribution,
        **of_engine,
    )


if __name__ == "__main__":
    process.main(build)
