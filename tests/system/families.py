"""The families of tiny models that one server holds."""

from __future__ import annotations

DECODERS = ("gpt2", "llama", "qwen2", "qwen3", "gemma", "phi", "opt", "gpt_neox", "bloom")
NUM_NEW = 24
"""Tokens that are compared."""
