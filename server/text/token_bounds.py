"""How many tokens a text has at least, known without reading it by its tokenizer.

Only ASCII letters and digits are counted, and the spaces before them: no normaliser that is known here removes or
joins them, so that each is part of a token, and a token holds no more of them than the longest of the vocabulary.
"""

from __future__ import annotations

import json
import math
import string
from collections.abc import Iterable, Iterator
from typing import Any

COUNTED = string.ascii_letters + string.digits
SPACES = " ▁Ġ"
"""As texts and vocabularies write a space."""
KEEPING_NORMALIZERS = {
    *("Sequence", "BertNormalizer", "Strip", "StripAccents", "Lowercase", "Nmt", "Precompiled", "Prepend", "ByteLevel"),
    *("NFC", "NFD", "NFKC", "NFKD"),
}
KEEPING_PRE_TOKENIZERS = {
    *("Sequence", "ByteLevel", "Whitespace", "WhitespaceSplit", "Metaspace", "Digits", "Punctuation"),
    *("BertPreTokenizer", "UnicodeScripts"),
}
SPLITTING_AT_SPACES = frozenset(("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Metaspace"))


class TokenBounds:
    """Lower bounds for the texts of one tokenizer; 0 where nothing is known."""

    def __init__(self, tokenizer_json: str) -> None:
        """Takes as long as parsing the tokenizer."""
        tree = json.loads(tokenizer_json)
        pre_tokenizers = list(_parts(tree.get("pre_tokenizer"), "pretokenizers"))
        self._kinds: bytes | None = None
        """Of each byte of UTF-8: "a", a letter or digit that is counted, a space, "x", outside ASCII, or "."."""
        if not _keeps_all(tree, pre_tokenizers):
            return
        tokens = [*_vocabulary(tree["model"]), *(token["content"] for token in tree.get("added_tokens", []))]
        counted = _counted(tree, set(tokens))
        reads_whole_words = tree["model"].get("type") in ("WordPiece", "WordLevel")
        splits = any(part.get("type") in SPLITTING_AT_SPACES for part in pre_tokenizers)
        self._kinds = bytes(_kind(byte, counted) for byte in range(256))
        self._most_in_a_token = max((sum(c in COUNTED for c in token) for token in tokens), default=0)
        # An unknown word is one token, however long it is.
        self._counts_letters = not reads_whole_words
        self._counts_words = splits if reads_whole_words else not any(map(_holds_a_space_between, tokens))

    def at_least(self, text: str) -> int:
        """Tokens that the text has at least, without special tokens around it."""
        if self._kinds is None:
            return 0
        kinds = text.encode().translate(self._kinds)
        num_words = kinds.count(b" a") - kinds.count(b" ax") if self._counts_words else 0
        if not self._counts_letters or not self._most_in_a_token:
            return num_words
        # A letter before a mark may become another letter with it.
        num_letters = kinds.count(b"a") - kinds.count(b"ax")
        return max(num_words, math.ceil(num_letters / self._most_in_a_token))


def _kind(byte: int, counted: frozenset[str]) -> int:
    if byte >= 128:
        return ord("x")
    character = chr(byte)
    return ord("a" if character in counted else " " if character == " " else ".")


def _keeps_all(tree: dict[str, Any], pre_tokenizers: list[dict[str, Any]]) -> bool:
    """Whether no letter, digit or space before one gets lost on the way to the vocabulary."""
    normalizers = list(_parts(tree.get("normalizer"), "normalizers"))
    return (
        all(part.get("type") in KEEPING_NORMALIZERS or _replaces_no_letter(part) for part in normalizers)
        and all(part.get("type") in KEEPING_PRE_TOKENIZERS or _only_splits(part) for part in pre_tokenizers)
        and tree["model"].get("dropout") is None
    )


def _replaces_no_letter(part: dict[str, Any]) -> bool:
    pattern = part.get("pattern", {}).get("String")
    if part.get("type") != "Replace" or not isinstance(pattern, str):
        return False
    return not set(pattern) & _KEPT or (pattern == " " and str(part.get("content")) in SPACES)


def _only_splits(part: dict[str, Any]) -> bool:
    return part.get("type") == "Split" and part.get("behavior") != "Removed"


def _parts(part: dict[str, Any] | None, children: str) -> Iterator[dict[str, Any]]:
    """A step of the pipeline and, of a sequence, its steps."""
    if part is None:
        return
    yield part
    for child in part.get(children, []):
        yield from _parts(child, children)


def _vocabulary(model: dict[str, Any]) -> Iterable[str]:
    """A dictionary, or Unigram's pairs of a token and its score."""
    vocabulary = model["vocab"]
    return vocabulary if isinstance(vocabulary, dict) else (token for token, _ in vocabulary)


def _counted(tree: dict[str, Any], tokens: set[str]) -> frozenset[str]:
    """The letters and digits that the vocabulary has in every place of a word: they are never unknown."""
    model = tree["model"]
    if model.get("type") in ("WordPiece", "WordLevel"):
        return frozenset(COUNTED)
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""

    def is_known(character: str) -> bool:
        return all(form + character + end in tokens for form in {"", prefix} for end in {"", suffix})

    return frozenset(character for character in COUNTED if is_known(character) and is_known(character.lower()))


def _holds_a_space_between(token: str) -> bool:
    """Whether a token goes on with a letter or digit after a space, behind another."""
    seen = False
    for before, character in zip(" " + token, token, strict=False):
        if character in COUNTED:
            if seen and before in SPACES:
                return True
            seen = True
    return False


_KEPT = frozenset(COUNTED + " ")
