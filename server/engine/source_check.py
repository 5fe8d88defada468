"""What the plain encoder-decoder makes of a few pairs of source and output: the reference for `selfcheck.difference`.

Dimension key: T tokens of an output, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from server.engine.executors.encoder_decoder import num_embeddings
from server.engine.in_float32 import in_float32
from server.engine.selfcheck import FLOAT32_TOLERANCE, TOP_TOLERANCE, Reference, Sample, sequence_lengths

SOURCE_LENGTHS = (3, 40, 150)


@torch.inference_mode()
def reference(
    module: PreTrainedModel, max_model_len: int, max_source_len: int, restore: Callable[[], Any] = lambda: None
) -> Reference:
    """Run the plain module in float32, without a cache where it can.

    ``restore`` undoes what a forward pass changes in it.
    """
    generator = torch.Generator().manual_seed(0)
    source_ids, target_ids = (
        _ordinary_ids(part, module.config) for part in (module.get_encoder(), module.get_decoder())
    )

    def sample(length: int, source_length: int) -> Sample:
        source = source_ids[torch.randint(len(source_ids), (source_length,), generator=generator)].tolist()
        token_ids = target_ids[torch.randint(len(target_ids), (length,), generator=generator)].tolist()
        logits_TV = _plain_logits(module, source, token_ids)
        restore()
        return Sample(token_ids=token_ids, logits_TV=logits_TV, source_ids=source)

    window = getattr(module.config.get_text_config(decoder=True), "sliding_window", None)
    lengths = zip(sequence_lengths(max_model_len, window), SOURCE_LENGTHS, strict=True)
    with in_float32(module):
        samples = [sample(length, min(source_length, max_source_len)) for length, source_length in lengths]
        if not _is_causal(module, samples[0]):
            samples = [replace(sample, logits_TV=_stepwise_logits(module, sample)) for sample in samples]
    restore()
    return Reference(samples=samples, far=[], rule=None)


def _ordinary_ids(part: Any, config: Any) -> Tensor:
    """Some models give padding no position, and count those of one call only."""
    ids = torch.arange(num_embeddings(part))
    return ids[ids != config.pad_token_id] if config.pad_token_id is not None else ids


def _is_causal(module: PreTrainedModel, sample: Sample) -> bool:
    """Whether the tokens that follow leave a token's logits as they were. ProphetNet's do not, without its cache."""
    first = len(sample.token_ids) // 2 + 1
    first_TV = _plain_logits(module, sample.source_ids, sample.token_ids[:first])
    spread = float(first_TV.max() - first_TV.min())
    tolerance = FLOAT32_TOLERANCE if module.dtype == torch.float32 else TOP_TOLERANCE
    return float((sample.logits_TV[:first] - first_TV).abs().max()) <= tolerance * spread


def _plain_logits(module: PreTrainedModel, source_ids: list[int], token_ids: list[int]) -> Tensor:
    source, target = (torch.tensor([ids], device=module.device) for ids in (source_ids, token_ids))
    logits: Tensor = module(
        input_ids=source,
        attention_mask=torch.ones_like(source),
        decoder_input_ids=target,
        decoder_attention_mask=torch.ones_like(target),
        use_cache=False,
    ).logits
    return logits[0].float().cpu()


def _stepwise_logits(module: PreTrainedModel, sample: Sample) -> Tensor:
    """Token by token, with the module's own cache, as `generate` computes them."""
    source = torch.tensor([sample.source_ids], device=module.device)
    whole = torch.ones_like(source)
    states = module.get_encoder()(input_ids=source, attention_mask=whole, return_dict=True)
    cache = EncoderDecoderCache(DynamicCache(config=module.config), DynamicCache())
    rows = [
        module(
            encoder_outputs=states,
            attention_mask=whole,
            decoder_input_ids=torch.tensor([[token_id]], device=module.device),
            past_key_values=cache,
            use_cache=True,
        ).logits[0]
        for token_id in sample.token_ids
    ]
    return torch.cat(rows).float().cpu()
