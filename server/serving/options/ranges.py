"""Which values each option may have, as one table; knows nothing of what goes together."""

from __future__ import annotations

from collections.abc import Iterator

from server.errors import InvalidParameter
from server.protocol import Ready
from server.serving.options.range_kinds import (
    Biases,
    Characters,
    Count,
    Decay,
    Number,
    Penalties,
    Range,
    Sequences,
    Texts,
    TokenIds,
)
from server.serving.options.table import GenerateOptions

MAX_SEED = 2**63 - 1
MAX_STOP_STRINGS = 16
MAX_OUTPUTS = 8
MAX_TOP_TOKENS = 20
MAX_TOLD_IDS = 128
MAX_TIME_S = 86_400

PART = Number(0, 1, is_low_excluded=True)
CUTOFF = Number(0, 1, is_high_excluded=True)
FACTOR = Number(0.01, 100)

RANGES: dict[str, Range] = {
    "max_new_tokens": Number(1),
    "min_new_tokens": Number(0),
    "max_length": Number(1, "max_model_len"),
    "min_length": Number(0, "max_model_len"),
    "max_time": Number(0, MAX_TIME_S, is_low_excluded=True),
    "truncate": Number(1),
    "stop": Texts(MAX_STOP_STRINGS, 256),
    "stop_token_ids": TokenIds(128),
    "eos_token_id": TokenIds(128, min_ids=1),
    "forced_bos_token_id": TokenIds(),
    "forced_eos_token_id": TokenIds(128, min_ids=1),
    "exponential_decay_length_penalty": Decay(),
    "seed": Number(-MAX_SEED - 1, MAX_SEED),
    "temperature": Number(0, 100),
    "top_n_sigma": Number(0, 100),
    "top_k": Number(0, "vocab_size"),
    "top_p": Number(0, 1),
    "min_p": Number(0, 1),
    "typical_p": PART,
    "epsilon_cutoff": CUTOFF,
    "eta_cutoff": CUTOFF,
    "xtc_probability": Number(0, 1),
    "xtc_threshold": Number(0, 0.5),
    "num_return_sequences": Count(MAX_OUTPUTS),
    "n": Count(MAX_OUTPUTS),
    "best_of": Count(MAX_OUTPUTS),
    "num_beams": Count("max_running"),
    "num_beam_groups": Count("max_running"),
    "diversity_penalty": Number(0, 100),
    "length_penalty": Number(-5, 5),
    "repetition_penalty": FACTOR,
    "presence_penalty": Number(-2, 2),
    "frequency_penalty": Number(-2, 2),
    "penalty_scope": Count("max_model_len"),
    "encoder_repetition_penalty": FACTOR,
    "no_repeat_ngram_size": Count("max_model_len", low=0),
    "encoder_no_repeat_ngram_size": Count("max_model_len", low=0),
    "dry_multiplier": Number(0, 100),
    "dry_base": Number(1, 10),
    "dry_allowed_length": Count("max_model_len"),
    "dry_range": Count("max_model_len", low=0),
    "dry_sequence_breakers": Texts(16, 64),
    "logit_bias": Biases(300),
    "sequence_bias": Sequences(128, 32, has_bias=True),
    "bad_words_ids": Sequences(128, 32, has_bias=False),
    "bad_words": Texts(64, 256, is_stripped=True),
    "allowed_token_ids": TokenIds("vocab_size", min_ids=1),
    "suppress_tokens": TokenIds("vocab_size"),
    "begin_suppress_tokens": TokenIds("vocab_size"),
    "guidance_scale": Number(0, 100),
    "negative_prompt": Characters(100_000),
    "banned_phrases": Texts(64, 256, is_stripped=True),
    "max_rewinds": Number(0, 1000),
    "penalties": Penalties(64, 256),
    "top_n_tokens": Number(0, MAX_TOP_TOKENS),
    "logprob_token_ids": TokenIds(MAX_TOLD_IDS),
    "penalty_alpha": Number(0, 1),
}


def findings(options: GenerateOptions, ready: Ready) -> Iterator[InvalidParameter]:
    """The first fault of each option."""
    for name, range_ in RANGES.items():
        value = getattr(options, name)
        if value is None:
            continue
        for wrong, rule in range_.findings(value, ready):
            yield InvalidParameter(name, wrong, rule)
            break
