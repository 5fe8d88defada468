"""Texts of an exact number of tokens."""

from __future__ import annotations

import random
from functools import cache
from typing import Any


def prompts(tokenizer: Any, number: int, num_tokens: int, rng: random.Random, *, prefix: str = "") -> list[str]:
    """Texts of ``num_tokens`` tokens, after the prefix: words that are one token each, in random order."""
    words = _words(tokenizer)
    wanted = num_tokens + (len(tokenizer(prefix)["input_ids"]) if prefix else 0)
    texts: list[str] = []
    while len(texts) < number:
        text = prefix + "".join(rng.choices(words, k=num_tokens))
        if len(tokenizer(text)["input_ids"]) == wanted:
            texts.append(text)
    return texts


@cache
def _words(tokenizer: Any) -> list[str]:
    return [text for text in tokenizer.batch_decode([[i] for i in range(len(tokenizer))]) if _is_word(text)]


def _is_word(text: str) -> bool:
    return text.startswith(" ") and len(text) > 3 and text[1:].isascii() and text[1:].isalpha() and text[1:].islower()
