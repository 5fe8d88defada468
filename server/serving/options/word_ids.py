"""The tokens of words that a client names: banned words, and texts that no repetition reaches across."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from server.errors import InvalidParameter
from server.text.tokenizer import Tokenizer

DEFAULT_BREAKERS = ("\n", ":", '"', "*")
"""As in llama.cpp."""


def bad_word_ids(tokenizer: Tokenizer, words: Sequence[str]) -> list[tuple[int, ...]]:
    """The tokens of each word at the beginning of a text and after a space."""
    written = [text for word in words for text in (word.strip(), " " + word.strip())]
    found = [tuple(tokenizer.encode(text, add_special_tokens=False).ids) for text in written]
    return list(dict.fromkeys(ids for ids in found if ids))


@functools.lru_cache(maxsize=64)
def breaker_ids(tokenizer: Tokenizer, vocab_size: int, breakers: tuple[str, ...] | None) -> tuple[int, ...]:
    """Every token whose text contains one of them. Default breakers that no token contains are none."""
    texts = _token_texts(tokenizer, vocab_size)
    found: set[int] = set()
    for breaker in DEFAULT_BREAKERS if breakers is None else breakers:
        ids = [token_id for token_id, text in enumerate(texts) if breaker in text]
        if not ids and breakers is not None:
            raise InvalidParameter("dry_sequence_breakers", breaker, "must lie within one token of the model")
        found.update(ids)
    return tuple(sorted(found))


@functools.lru_cache(maxsize=8)
def _token_texts(tokenizer: Tokenizer, vocab_size: int) -> list[str]:
    return [tokenizer.token_text(token_id) for token_id in range(vocab_size)]
