"""The tokens of a text for the encoder of an encoder-decoder model, in serving and in training."""

from __future__ import annotations

import tokenizers

from server.text.languages import Direction
from server.text.tokenizer import Tokenizer


def source_tokens(
    tokenizer: Tokenizer, direction: Direction, text: str, limit: int | None = None
) -> tuple[tokenizers.Encoding, list[int], int]:
    """The encoded text with its prefix, all tokens, and how many special tokens are at the end.

    Of a text with more than ``limit`` tokens, only as many as show that it has more are certain to be there.
    """
    files = tokenizer.files
    whole = direction.prefix + text
    if limit is not None:
        whole = tokenizer.beginning(whole, limit + 1)
    if direction.prefix_ids is None and direction.suffix_ids is None:
        encoding = tokenizer.encode(whole)
        mask = encoding.special_tokens_mask
        num_last = next((i for i, special in enumerate(reversed(mask)) if not special), len(mask))
        return encoding, encoding.ids, num_last
    before = files.prefix_ids if direction.prefix_ids is None else direction.prefix_ids
    after = files.suffix_ids if direction.suffix_ids is None else direction.suffix_ids
    encoding = tokenizer.encode(whole, add_special_tokens=False)
    return encoding, [*before, *encoding.ids, *after], len(after)


def cut(ids: list[int], num_last: int, limit: int) -> list[int]:
    """At most ``limit`` tokens. Cuts the end of the text and keeps the last ``num_last`` tokens.

    >>> cut([1, 2, 3, 4, 9], num_last=1, limit=3)
    [1, 2, 9]
    """
    if len(ids) <= limit:
        return ids
    num_last = min(num_last, limit)
    return ids[: limit - num_last] + ids[len(ids) - num_last :]
