"""What the plain encoder-decoder makes of a few pairs of source and output: the reference for `selfcheck.difference`.

Dimension key: T tokens of an output, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from server.engine.executors.encoder_decoder import num_embeddings
from server.engine.selfcheck import Reference, Sample, sequence_lengths

SOURCE_LENGTHS = (3, 40, 150)


@torch.inference_mode()
def reference(
    module: PreTrainedModel, max_model_len: int, max_source_len: int, restore: Callable[[], Any] = lambda: None
) -> Reference:
    """Run the plain module, without a cache. ``restore`` undoes what a forward pass changes in the module."""
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
    return Reference(
        samples=[sample(length, min(source_length, max_source_len)) for length, source_length in lengths],
        far=[],
        rule=None,
    )


def _ordinary_ids(part: Any, config: Any) -> Tensor:
    """Some models give padding no position, and count those of one call only."""
    ids = torch.arange(num_embeddings(part))
    return ids[ids != config.pad_token_id] if config.pad_token_id is not None else ids


def _plain_logits(module: PreTrainedModel, source_ids: list[int], token_ids: list[int]) -> Tensor:
    source = torch.tensor([source_ids], device=module.device)
    logits: Tensor = module(
        input_ids=source,
        attention_mask=torch.ones_like(source),
        decoder_input_ids=torch.tensor([token_ids], device=module.device),
        use_cache=False,
    ).logits
    return logits[0].float().cpu()
