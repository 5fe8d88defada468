"""How many tokens a text has at least, known without reading it by its tokenizer.

Only ASCII letters and digits are counted, and words that begin with one. No normaliser that is known here removes or
joins them, so each is part of a token, and a token holds at most as many as the longest of the vocabulary.
"""

from __future__ import annotations

import json
import math
import string
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import Tokenizer as Backend

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
PART_CHARACTERS = 64 * 1024
SPLITTING_AT_SPACES = frozenset(("BertPreTokenizer", "Whitespace", "WhitespaceSplit"))


class TokenBounds:
    """Lower bounds for the texts of one tokenizer; 0 where nothing is known."""

    _kinds: bytes | None = None
    """Of each byte of UTF-8: "a", a counted letter or digit, a space, "x", the first outside ASCII, or "."."""

    def __init__(self, tokenizer_json: str) -> None:
        """Takes as long as parsing the tokenizer."""
        tree = json.loads(tokenizer_json)
        if not _keeps_all(tree):
            return
        vocabulary = set(_vocabulary(tree["model"]))
        added = [token["content"] for token in tree.get("added_tokens", [])]
        added += [unicodedata.normalize("NFKC", token) for token in added]
        self._set(_counted(tree, vocabulary), max(map(counted_in, [*vocabulary, *added]), default=0))
        # An unknown word is one token, however long it is.
        self._counts_letters = not _reads_whole_words(tree)
        self._counts_words = (
            not any(map(_holds_a_space, added)) and _splits_at_spaces(tree)
            if _reads_whole_words(tree)
            else not any(map(_holds_a_space, added)) and not any(map(_holds_a_space_between, vocabulary))
        )

    def _set(self, counted: frozenset[str], most_in_a_token: int) -> None:
        self._kinds = bytes(_kind(byte, counted) for byte in range(256))
        self._most_in_a_token = most_in_a_token
        self._counts_letters = True
        self._counts_words = False

    def at_least(self, text: str, enough: float = math.inf) -> int:
        """Tokens that the text has at least, without special tokens around it. Beyond ``enough`` it is read no further.

        Counting holds up all other threads, so a long text is read in parts.
        """
        num_words = num_letters = num_marks = num_tokens = 0
        if self._kinds is None:
            return 0
        for start in range(0, len(text), PART_CHARACTERS):
            words, letters, marks = self._counts(self._kinds, text[start : start + PART_CHARACTERS])
            num_words += words if self._counts_words else 0
            num_letters += letters if self._counts_letters else 0
            num_marks += marks
            # Each may be a mark that makes another letter of one that is counted. The next part may begin with one.
            num_changed = num_marks + (start + PART_CHARACTERS < len(text))
            num_tokens = max(0, num_words - num_changed)
            if self._most_in_a_token:
                num_tokens = max(num_tokens, math.ceil((num_letters - num_changed) / self._most_in_a_token))
            if num_tokens > enough:
                break
        return num_tokens

    def _counts(self, kinds_of_bytes: bytes, part: str) -> tuple[int, int, int]:
        """Counted words, counted letters, and characters that may make another letter of one that is counted."""
        kinds = part.encode().translate(kinds_of_bytes)
        return kinds.count(b" a"), kinds.count(b"a"), kinds.count(b"x")


def counted_in(token: str) -> int:
    """Letters and digits of a token that could be counted in a text."""
    return sum(character in COUNTED for character in token)


def _kind(byte: int, counted: frozenset[str]) -> int:
    if byte >= 128:
        return ord("x" if byte >= 0xC0 else ".")
    character = chr(byte)
    return ord("a" if character in counted else " " if character == " " else ".")


def _reads_whole_words(tree: dict[str, Any]) -> bool:
    return tree["model"].get("type") in ("WordPiece", "WordLevel")


def _keeps_all(tree: dict[str, Any]) -> bool:
    """Whether no letter, digit or space before one gets lost on the way to the vocabulary."""
    return (
        all(part.get("type") in KEEPING_NORMALIZERS or _replaces_no_letter(part) for part in _normalizers(tree))
        and all(_only_splits(part) for part in _pre_tokenizers(tree))
        and tree["model"].get("dropout") is None
        and _keeps_pairs(tree)
    )


def _keeps_pairs(tree: dict[str, Any]) -> bool:
    """Whether the normaliser keeps any two letters or digits side by side; a precompiled one has rules of its own."""
    if tree.get("normalizer") is None:
        return True
    model = {"type": "BPE", "vocab": {}, "merges": []}
    normalizer = Backend.from_str(json.dumps({"normalizer": tree["normalizer"], "model": model})).normalizer
    pairs = " ".join(first + second for first in COUNTED for second in COUNTED)
    kept = "".join(character for character in normalizer.normalize_str(pairs) if character in COUNTED)
    return kept.lower() == pairs.replace(" ", "").lower()


def _replaces_no_letter(part: dict[str, Any]) -> bool:
    pattern = part.get("pattern", {}).get("String")
    if part.get("type") != "Replace" or not isinstance(pattern, str):
        return False
    return not set(pattern) & _KEPT or _marks_spaces(part)


def _marks_spaces(part: dict[str, Any]) -> bool:
    is_space = part.get("type") == "Replace" and part.get("pattern") == {"String": " "}
    return is_space and str(part.get("content")) in SPACES


def _only_splits(part: dict[str, Any]) -> bool:
    if part.get("type") == "Split":
        return part.get("behavior") != "Removed"
    return part.get("type") in KEEPING_PRE_TOKENIZERS and part.get("replacement", " ") in SPACES


def _splits_at_spaces(tree: dict[str, Any]) -> bool:
    if any(_marks_spaces(part) for part in _normalizers(tree)):
        return False
    parts = list(_pre_tokenizers(tree))
    if any(part["type"] == "Metaspace" for part in parts):
        # It may leave no space for the others to split at.
        return all(part.get("split", True) for part in parts if part["type"] == "Metaspace")
    return any(part["type"] in SPLITTING_AT_SPACES for part in parts)


def _normalizers(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return _parts(tree.get("normalizer"), "normalizers")


def _pre_tokenizers(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return _parts(tree.get("pre_tokenizer"), "pretokenizers")


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


def _counted(tree: dict[str, Any], vocabulary: set[str]) -> frozenset[str]:
    """The letters and digits that the vocabulary has in every place of a word: they are never unknown."""
    if _reads_whole_words(tree):
        return frozenset(COUNTED)
    model = tree["model"]
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""

    def is_known(character: str) -> bool:
        return all(form + character + end in vocabulary for form in {"", prefix} for end in {"", suffix})

    return frozenset(character for character in COUNTED if is_known(character) and is_known(character.lower()))


def _holds_a_space(token: str) -> bool:
    """Whether an added token may stand for two words; a normaliser may make letters of any characters."""
    return len(token.replace("▁", " ").split()) > 1


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
