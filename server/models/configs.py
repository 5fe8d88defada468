"""Reads a folder's config.json. The one place that knows which numbers in it mean "none"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

NONE_UNLESS_POSITIVE = (
    "sliding_window",
    "sliding_window_size",
    "attention_chunk_size",
    "final_logit_softcapping",
    "attn_logit_softcapping",
)
"""Fields where 0 and negative numbers disable what the field limits. transformers takes them at their word and masks
every token, or divides by zero."""


WIDEST_WINDOW = 2**20
"""For classes and layers that need a window: one that no sequence leaves."""


def read_config(folder: Path, **overrides: Any) -> PreTrainedConfig:
    """The config in ``folder``, built without sentinels. Raises what transformers raises for a broken one."""
    content, _ = PreTrainedConfig.get_config_dict(folder, local_files_only=True)
    if without_sentinels(content) == content or content.get("model_type") not in CONFIG_MAPPING:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **overrides
        )
        return config
    # A class derives fields from others while it is built, so they have to be clean before that.
    config_class = CONFIG_MAPPING[content["model_type"]]
    try:
        built: PreTrainedConfig = config_class.from_dict(without_sentinels(content), **overrides)
        needs_window = "sliding_attention" in (getattr(built.get_text_config(), "layer_types", None) or ())
    except StrictDataclassError:
        needs_window = True
    if needs_window:
        built = config_class.from_dict(without_sentinels(content, no_window=WIDEST_WINDOW), **overrides)
    built.name_or_path = str(folder)
    return built


def without_sentinels(content: dict[str, Any], no_window: int | None = None) -> dict[str, Any]:
    """``content``, and the configs nested in it, with None for each number that means it; ``no_window`` for windows.

    >>> without_sentinels({"sliding_window": -1, "pad_token_id": -1, "vocab_size": 9})
    {'sliding_window': None, 'pad_token_id': None, 'vocab_size': 9}
    """
    cleaned = {
        name: without_sentinels(value, no_window) if isinstance(value, dict) else value
        for name, value in content.items()
    }
    for name in NONE_UNLESS_POSITIVE:
        if name in cleaned and positive(cleaned[name]) is None:
            cleaned[name] = no_window if name == "sliding_window" and cleaned[name] is not None else None
    if "pad_token_id" in cleaned:
        cleaned["pad_token_id"] = token_id(cleaned["pad_token_id"], cleaned.get("vocab_size"))
    return cleaned


def positive(value: Any) -> Any:
    """``value`` unless it is a number that stands for none: 0, or less."""
    return None if _is_number(value) and value <= 0 else value


def token_id(value: Any, vocab_size: Any = None) -> Any:
    """``value`` unless it is a number that is no token of the model."""
    if not _is_number(value):
        return value
    return None if value < 0 or (positive(vocab_size) is not None and value >= vocab_size) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def first_line(error: Exception) -> str:
    """What the error says, short enough for the middle of a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, StrictDataclassError):
        return " ".join(lines[:2])[:300]
    return lines[0][:300]
