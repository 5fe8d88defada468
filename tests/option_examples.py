"""One request for each option of ``/generate``, in which it has an effect. `server/OPTIONS.md` shows them."""

from __future__ import annotations

from typing import Any

SAMPLING = {"do_sample": True, "seed": 7}
BEAMS = {"num_beams": 2}
GRAMMAR = {"grammar": {"type": "regex", "value": "[a-z ]+"}}

EXAMPLES: dict[str, dict[str, Any]] = {
    "max_new_tokens": {"max_new_tokens": 6},
    "min_new_tokens": {"min_new_tokens": 4, "max_new_tokens": 6},
    "max_length": {"max_length": 16},
    "min_length": {"min_length": 12, "max_length": 16},
    "max_time": {"max_time": 30.0},
    "truncate": {"truncate": 4},
    "stop": {"stop": ["\n\n", "User:"]},
    "stop_token_ids": {"stop_token_ids": [5, 9]},
    "eos_token_id": {"eos_token_id": [5]},
    "ignore_eos": {"ignore_eos": True, "max_new_tokens": 6},
    "forced_bos_token_id": {"forced_bos_token_id": 9},
    "forced_eos_token_id": {"forced_eos_token_id": 5, "max_new_tokens": 6},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [4, 1.2]},
    "do_sample": {"do_sample": True},
    "seed": {"seed": 7, "do_sample": True},
    "temperature": {"temperature": 0.7},
    "top_n_sigma": {"top_n_sigma": 1.5},
    "top_k": {"top_k": 40},
    "top_p": {"top_p": 0.9},
    "min_p": {"min_p": 0.05},
    "typical_p": {"typical_p": 0.95},
    "epsilon_cutoff": {"epsilon_cutoff": 0.0003},
    "eta_cutoff": {"eta_cutoff": 0.0003},
    "xtc_probability": {"xtc_probability": 0.5},
    "xtc_threshold": {"xtc_threshold": 0.15, "xtc_probability": 0.5},
    "num_return_sequences": {"num_return_sequences": 2, "do_sample": True},
    "n": {"n": 2, "do_sample": True},
    "best_of": {"best_of": 4, "do_sample": True},
    "rank_by": {"rank_by": {"model": "sentiment", "label": "POSITIVE"}, "best_of": 4, "do_sample": True},
    "num_beams": {"num_beams": 4},
    "num_beam_groups": {"num_beam_groups": 2, "num_beams": 4, "diversity_penalty": 0.5},
    "diversity_penalty": {"diversity_penalty": 0.5, "num_beams": 4, "num_beam_groups": 2},
    "length_penalty": {"length_penalty": 0.8, "num_beams": 4},
    "early_stopping": {"early_stopping": "never", "num_beams": 4},
    "repetition_penalty": {"repetition_penalty": 1.2},
    "presence_penalty": {"presence_penalty": 0.5},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "penalty_scope": {"penalty_scope": "output", "repetition_penalty": 1.2},
    "penalize_template": {"penalize_template": False, "repetition_penalty": 1.2},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.2},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 3},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 3},
    "dry_multiplier": {"dry_multiplier": 0.8},
    "dry_base": {"dry_base": 1.5, "dry_multiplier": 0.8},
    "dry_allowed_length": {"dry_allowed_length": 3, "dry_multiplier": 0.8},
    "dry_range": {"dry_range": 64, "dry_multiplier": 0.8},
    "dry_sequence_breakers": {"dry_sequence_breakers": ["."], "dry_multiplier": 0.8},
    "logit_bias": {"logit_bias": {"9": 5, "11": False}},
    "sequence_bias": {"sequence_bias": [[[9, 11], -5]]},
    "bad_words_ids": {"bad_words_ids": [[9, 11]]},
    "bad_words": {"bad_words": ["mill"]},
    "allowed_token_ids": {"allowed_token_ids": [67, 69, 73]},
    "suppress_tokens": {"suppress_tokens": [9, 11]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [9]},
    "renormalize_logits": {"renormalize_logits": True, "num_beams": 4},
    "guidance_scale": {"guidance_scale": 1.5},
    "negative_prompt": {"negative_prompt": "A dull text:", "guidance_scale": 1.5, "max_new_tokens": 6},
    "banned_phrases": {"banned_phrases": ["old mill", "风车"]},
    "max_rewinds": {"max_rewinds": 8, "banned_phrases": ["old mill"]},
    "penalties": {"penalties": [{"phrase": "the mill", "strength": 4}]},
    "grammar": GRAMMAR,
    "details": {"details": True},
    "top_n_tokens": {"top_n_tokens": 3, "details": True},
    "logprob_token_ids": {"logprob_token_ids": [9, 11], "details": True},
    "decoder_input_details": {"decoder_input_details": True, "details": True},
    "logprobs_mode": {"logprobs_mode": "processed", "details": True},
    "return_full_text": {"return_full_text": True},
    "return_parameters": {"return_parameters": True, "details": True},
}

BODIES: dict[str, dict[str, Any]] = {
    "penalize_template": {"template": "summary", "variables": {"text": "The mill runs."}},
}
"""What stands beside the parameters where it is not ``inputs``."""
NEEDS_MORE = {"rank_by": "a served classifier"}
"""Examples that one model alone cannot answer."""
