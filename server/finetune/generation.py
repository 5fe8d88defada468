"""The generation config of a trained encoder-decoder, for its scores and for serving."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from server.finetune.options import Options
from server.models.describe import GENERATION_FIELDS, LEFT_TO_CLIENTS
from server.text.languages import Direction

SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")
"""Removed: the scores of sampled outputs would differ each time."""
NOT_SHOWN = ("max_new_tokens", "eos_token_id", "forced_bos_token_id", "bad_words_ids", "suppress_tokens")
"""Fields that `inherited` leaves out."""


def generation_config(
    base: Any, options: Options, direction: Direction, start_id: int, max_new_tokens: int, tokenizer: Any
) -> Any:
    """A copy of the base's config, with the fields that training sets."""
    config = deepcopy(base)
    # Else transformers would build it again from config.json.
    config._from_model_config = False
    for name in (*LEFT_TO_CLIENTS, *SAMPLING, "max_length"):
        if hasattr(config, name):
            setattr(config, name, None)
    config.max_new_tokens = max_new_tokens
    config.decoder_start_token_id = start_id
    if options.num_beams:
        config.num_beams = options.num_beams
    if direction.forced_bos_id is not None:
        config.forced_bos_token_id = direction.forced_bos_id
    if config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    return config


def inherited(config: Any) -> str:
    """The base's fields that affect outputs: ``num_beams 4, length_penalty 2.0``."""
    fields = {name: getattr(config, name, None) for name in ("min_length", *GENERATION_FIELDS) if name not in NOT_SHOWN}
    return ", ".join(f"{name} {value}" for name, value in fields.items() if value not in (None, 0, 1, 1.0, False))
