"""A tokenizer's second reading of a text, in which its special tokens are words like any others."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import NamedTuple

import tokenizers

Span = tuple[int, int]


class Reading(NamedTuple):
    """A text's tokens."""

    encoding: tokenizers.Encoding
    """Of the text with other words in place of the special tokens that were meant; its ids are not the model's."""
    ids: list[int]
    spans: list[Span]
    """Where in that text the ranges are in which special tokens were meant."""
    is_meant: list[bool]
    """Of each token, whether it is such a special token."""


class PlainReader:
    """Reads special tokens where the caller says that they are meant, and nowhere else.

    There they are replaced by words that nobody can guess, which the tokenizer's copy knows as added tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        specials = {token.content: (id_, token) for id_, token in backend.get_added_tokens_decoder().items()}
        specials = {content: pair for content, pair in specials.items() if pair[1].special}
        self._backend = tokenizers.Tokenizer.from_str(backend.to_str())
        self._backend.encode_special_tokens = True
        nonce = secrets.token_hex(16)
        self._words = {content: f"{nonce}x{i}x" for i, content in enumerate(specials)}
        self._backend.add_tokens(
            [
                tokenizers.AddedToken(word, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False, special=False)
                for word, (_, token) in zip(self._words.values(), specials.values(), strict=True)
            ]
        )
        ids = (self._backend.token_to_id(word) for word in self._words.values())
        self._special_ids = dict(zip(ids, (id_ for id_, _ in specials.values()), strict=True))
        longest_first = sorted(map(re.escape, self._words), key=len, reverse=True)
        self._pattern = re.compile("|".join(longest_first) or r"(?!)")

    def read(self, text: str, meant: Sequence[Span], add_special_tokens: bool) -> Reading:
        """Special tokens are read inside the ranges ``meant`` only."""
        pieces: list[str] = []
        spans: list[Span] = []
        end = length = 0
        for start, stop in meant:
            inside = self._pattern.sub(lambda match: self._words[match[0]], text[start:stop])
            begin = length + start - end
            pieces += (text[end:start], inside)
            end, length = stop, begin + len(inside)
            spans.append((begin, length))
        pieces.append(text[end:])
        [encoding] = self._backend.encode_batch(["".join(pieces)], add_special_tokens=add_special_tokens)
        ids = [self._special_ids.get(id_, id_) for id_ in encoding.ids]
        return Reading(encoding, ids, spans, [id_ in self._special_ids for id_ in encoding.ids])
