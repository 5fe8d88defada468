"""Which values are a wish and which change nothing, so that clients may send every field they know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GREEDY_BELOW = 1e-5
"""A lower temperature leaves all probability on the most likely token: it is the same as 0."""

DRAW = (
    "temperature",
    "top_n_sigma",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "xtc_probability",
)
"""Options of the draw: whoever gives one wants to sample."""

NEUTRAL: dict[str, Any] = {
    "min_new_tokens": 0,
    "min_length": 0,
    "ignore_eos": False,
    "do_sample": False,
    "temperature": 1.0,
    "top_n_sigma": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "xtc_probability": 0.0,
    "num_return_sequences": 1,
    "n": 1,
    "best_of": 1,
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "length_penalty": 1.0,
    "early_stopping": False,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "penalize_template": True,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "dry_multiplier": 0.0,
    "renormalize_logits": False,
    "guidance_scale": 1.0,
    "details": False,
    "top_n_tokens": 0,
    "decoder_input_details": False,
    "logprobs_mode": "raw",
    "return_full_text": False,
    "stream": False,
    "return_parameters": False,
    "penalty_alpha": 0.0,
    "watermark": False,
}
"""The values that are no wish. An option that is not here is a wish whenever it is given, unless its list is empty."""


class Wishes:
    """The values that count, under the client's names: options, and the fields beside them in the body."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def __getitem__(self, name: str) -> Any:
        value = self.values.get(name)
        return NEUTRAL.get(name) if value is None else value

    def has(self, name: str) -> bool:
        """Whether the field has a value that wishes something."""
        value = self.values.get(name)
        return value is not None and is_wish(name, value)

    @property
    def is_sampling(self) -> bool:
        return bool(self["do_sample"]) and self["temperature"] >= GREEDY_BELOW

    @property
    def num_outputs(self) -> int:
        return int(max(self["num_return_sequences"], self["best_of"]))


def is_wish(name: str, value: Any) -> bool:
    return value is not None and value != () and value != {} and value != NEUTRAL.get(name)
