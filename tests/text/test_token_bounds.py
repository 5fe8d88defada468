"""A text's least number of tokens is never more than it has."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers

from server.text import token_bounds
from server.text.token_bounds import TokenBounds
from tests.tiny_tokenizers import KINDS, tokenizer_files

PIECES = [
    "a",
    "the",
    " ",
    "  ",
    "\n",
    "mill",
    "running",
    "12",
    "Z",
    "é",
    "中",
    "😀",
    "-",
    "<s>",
    "</w>",
    "▁",
    "Ġ",
    "\x00",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=60).map("".join) | st.text(max_size=60)
BOUNDS = {kind: TokenBounds(tokenizer_files(kind).tokenizer_json) for kind in KINDS}
BACKENDS = {kind: Backend.from_str(tokenizer_files(kind).tokenizer_json) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_is_never_more_than_the_tokens_of_the_text(kind: str, text: str) -> None:
    assert BOUNDS[kind].at_least(text) <= len(BACKENDS[kind].encode(text, add_special_tokens=False).ids)


def without_accents() -> Backend:
    """Its vocabulary has letters, and not what they become with an accent."""
    backend = Backend.from_str(tokenizer_files("byte_fallback").tokenizer_json)
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), backend.normalizer])
    tree = json.loads(backend.to_str())
    tree["model"]["byte_fallback"] = False
    return Backend.from_str(json.dumps(tree))


WITHOUT_ACCENTS = without_accents()
BOUNDS_WITHOUT_ACCENTS = TokenBounds(WITHOUT_ACCENTS.to_str())


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_a_letter_that_its_accent_makes_unknown_is_not_counted(text: str) -> None:
    num_tokens = len(WITHOUT_ACCENTS.encode(text, add_special_tokens=False).ids)
    assert BOUNDS_WITHOUT_ACCENTS.at_least(text) <= num_tokens


@pytest.mark.parametrize("kind", KINDS)
def test_grows_with_the_number_of_words(kind: str) -> None:
    assert BOUNDS[kind].at_least("the mill " * 1000) >= 900


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "metaspace"])
def test_grows_with_the_length_of_one_word(kind: str) -> None:
    assert BOUNDS[kind].at_least("a" * 100_000) >= 2000


def test_an_unknown_word_is_one_token_however_long() -> None:
    assert BOUNDS["word_piece"].at_least("a" * 100_000) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "mill"}, "content": ""}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[a-z]+"}, "behavior": "Removed", "invert": False}},
        {"normalizer": {"type": "Unheard"}},
    ],
)
def test_knows_nothing_of_a_tokenizer_that_may_drop_letters(change: dict[str, object]) -> None:
    tree = json.loads(tokenizer_files("byte_level").tokenizer_json)
    assert TokenBounds(json.dumps({**tree, **change})).at_least("a" * 1000) == 0


def test_a_token_of_several_words_makes_words_count_for_nothing() -> None:
    backend = Backend.from_str(tokenizer_files("byte_level").tokenizer_json)
    backend.add_tokens(["the mill the mill"])
    text = "the mill the mill" * 100
    assert TokenBounds(backend.to_str()).at_least(text) <= len(backend.encode(text).ids)


def test_words_of_an_added_token_are_one_word_to_word_piece() -> None:
    backend = Backend.from_str(tokenizer_files("word_piece").tokenizer_json)
    backend.add_tokens(["new york"])
    text = "new york " * 100
    assert TokenBounds(backend.to_str()).at_least(text) <= len(backend.encode(text, add_special_tokens=False).ids)


def test_a_precompiled_normalizer_that_drops_letters_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_bounds, "KEEPING_NORMALIZERS", {"Replace"})
    tree = json.loads(tokenizer_files("byte_level").tokenizer_json)
    tree["normalizer"] = {"type": "Replace", "pattern": {"String": "th"}, "content": ""}
    assert TokenBounds(json.dumps(tree)).at_least("a" * 1000) == 0


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(text=TEXTS, part=st.integers(1, 7))
def test_is_never_more_than_the_tokens_of_a_text_that_is_read_in_parts(kind: str, text: str, part: int) -> None:
    with mock.patch.object(token_bounds, "PART_CHARACTERS", part):
        least = BOUNDS[kind].at_least(text)
    assert least <= len(BACKENDS[kind].encode(text, add_special_tokens=False).ids)


def test_a_text_that_is_long_enough_is_read_no_further() -> None:
    text = TextThatCounts("a" * 2_000_000)
    assert BOUNDS["byte_level"].at_least(text, enough=100) > 100
    assert text.num_taken == token_bounds.PART_CHARACTERS


class TextThatCounts(str):
    """Notes how many of its characters are taken."""

    num_taken = 0

    def __getitem__(self, part: Any) -> str:
        taken = super().__getitem__(part)
        self.num_taken += len(taken)
        return taken
