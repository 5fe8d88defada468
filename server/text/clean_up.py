"""Texts without the spaces that joined tokens leave: transformers' ``clean_up_tokenization_spaces``."""

from __future__ import annotations

REMOVED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def clean_up(text: str) -> str:
    """
    >>> clean_up("It 's late , is n't it ?")
    "It's late, isn't it?"
    """
    for pattern in REMOVED:
        text = text.replace(pattern, pattern.strip())
    return text
