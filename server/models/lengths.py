"""How long one input of a model may be: what its config, its tables, its tokenizer and the operator say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from server.config import ModelConfig
from server.models.configs import positive
from server.models.describe import refuse
from server.models.embedder import Recipe
from server.tasks import SEQ2SEQ, TASKS

LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")

FALLBACK_LENGTH = 2048
"""For models without a limit of their own, such as those with ALiBi."""


LARGEST_LENGTH = 10**9
"""transformers writes 10**30 for a tokenizer without a limit."""


def longest_input(model: ModelConfig, module: PreTrainedModel, tokenizer: Any, task: str, recipe: Recipe | None) -> int:
    """Most tokens of one sequence: what the operator sets, else what the folder says."""
    of_tokenizer = _tokenizer_limit(tokenizer)
    if task == SEQ2SEQ.name:
        return _of_part(model, _part_positions(module, "decoder"), of_tokenizer)
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


def longest_source(model: ModelConfig, module: PreTrainedModel, tokenizer: Any) -> int:
    """Most tokens of a text that an encoder-decoder reads; ``max_model_len`` bounds it and the output alike."""
    return _of_part(model, _part_positions(module, "encoder"), _tokenizer_limit(tokenizer))


def _of_part(model: ModelConfig, positions: int | None, of_tokenizer: int | None) -> int:
    if model.max_model_len and positions is not None and model.max_model_len > positions:
        raise refuse(
            f"max_model_len of model {model.name} is {model.max_model_len} and its encoder or decoder has {positions} "
            f"positions. Set it to {positions} or less."
        )
    usual = min(positions or FALLBACK_LENGTH, of_tokenizer or FALLBACK_LENGTH)
    return model.max_model_len or usual


def _part_positions(module: PreTrainedModel, part: Literal["encoder", "decoder"]) -> int | None:
    """Of one half of an encoder-decoder. T5's kin has none: how far tokens lie apart is all that it sees."""
    config = module.config
    if getattr(config, "relative_attention_num_buckets", None):
        return None
    own = getattr(config, part, None)
    names = (f"max_{part}_position_embeddings", "max_position_embeddings")
    values = [int(value) for name in names if (value := positive(getattr(own or config, name, None)))]
    half = module.get_encoder() if part == "encoder" else module.get_decoder()
    return min([*values[:1], *_table_rows(half)], default=None)


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
    for rows in _table_rows(module):
        if getattr(config, "attention_type", None) == "block_sparse":
            # BigBird fills a text's last block up with padding, which needs positions, too.
            rows -= rows % config.block_size
        limits = [min([*limits[:1], rows])]
    return limits[0] if limits else None


def _table_rows(module: nn.Module) -> Iterator[int]:
    """Positions that each table of positions has for tokens."""
    for name, part in module.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(part, nn.Embedding):
            # RoBERTa's kind counts positions from padding_idx + 1 and sizes the table accordingly.
            yield part.num_embeddings if part.padding_idx is None else part.num_embeddings - part.padding_idx - 1
