"""How long one input of a model may be: what its config, its tables, its tokenizer and the operator say."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from server.config import ModelConfig
from server.models.configs import positive
from server.models.describe import refuse
from server.models.embedder import Recipe
from server.tasks import TASKS

LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")

FALLBACK_LENGTH = 2048
"""For models without a limit of their own, such as those with ALiBi."""


LARGEST_LENGTH = 10**9
"""transformers writes 10**30 for a tokenizer without a limit."""


def longest_input(model: ModelConfig, module: PreTrainedModel, tokenizer: Any, task: str, recipe: Recipe | None) -> int:
    """Most tokens of one sequence: what the operator sets, else what the folder says."""
    of_tokenizer = _tokenizer_limit(tokenizer)
    limit = _num_positions(module) or min(of_tokenizer or FALLBACK_LENGTH, FALLBACK_LENGTH)
    if recipe is not None:
        limit = min(limit, recipe.max_length or limit)
    wanted = model.max_model_len
    if wanted > limit:
        raise refuse(
            f"max_model_len of model {model.name} is {wanted} and the model has {limit} positions. "
            f"Set it to {limit} or less."
        )
    # transformers cuts what an encoder reads at the tokenizer's limit, and generates from prompts of any length.
    usual = limit if TASKS[task].is_decoder else min(limit, of_tokenizer or limit)
    return wanted or usual


def _tokenizer_limit(tokenizer: Any) -> int | None:
    """A huge number stands for none, and so does 0."""
    limit = positive(tokenizer.model_max_length)
    return None if limit is None or limit > LARGEST_LENGTH else int(limit)


def _num_positions(module: PreTrainedModel) -> int | None:
    """Most tokens of one sequence that the model has positions for; None where it has no limit."""
    config = module.config.get_text_config()
    limits = [int(value) for name in LENGTH_FIELDS if (value := positive(getattr(config, name, None)))]
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "dynamic":
        # Here the config's number is where the scaling begins.
        limits = [int(limit * rope.get("factor", 1.0)) for limit in limits]
    for name, part in module.named_modules():
        if not (name.endswith("embeddings.position_embeddings") and isinstance(part, nn.Embedding)):
            continue
        # RoBERTa's kind counts positions from padding_idx + 1 and sizes the table accordingly.
        rows = part.num_embeddings if part.padding_idx is None else part.num_embeddings - part.padding_idx - 1
        if getattr(config, "attention_type", None) == "block_sparse":
            # BigBird fills a text's last block up with padding, which needs positions, too.
            rows -= rows % config.block_size
        limits = [min([*limits[:1], rows])]
    return limits[0] if limits else None
