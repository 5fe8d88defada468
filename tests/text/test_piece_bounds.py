"""The least number of SentencePiece's tokens in a text is never more than it has."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from server.models.tokenizer_files import load_tokenizer, tokenizer_files
from server.text.piece_bounds import PieceBounds
from server.text.tokenizer import Tokenizer
from tests.fuzz.scale import SCALE
from tests.many_scripts import random_texts
from tests.tiny_sentencepiece import train, write_m2m100, write_marian

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no normalisation": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "case folding": {"normalization_rule_name": "nfkc_cf"},
    "byte fallback": {"byte_fallback": True, "vocab_size": 700},
    "symbols": {"user_defined_symbols": ("<sep>", "mill", "#"), "control_symbols": ("<ctl>", "<x>")},
    "whole spaces": {"split_by_whitespace": False, "allow_whitespace_only_pieces": True},
}
WRITE: dict[str, Callable[[Path, bytes], Path]] = {
    "unigram": lambda folder, model: write_marian(folder, model, train("unigram", vocab_size=200), [">>fra<<"]),
    "bpe": lambda folder, model: write_m2m100(folder, model, src_lang="en"),
    "word": lambda folder, model: write_marian(folder, model, model, []),
}
PIECES = (
    "a",
    "b",
    "zq",
    " ",
    "  ",
    "mill",
    "\u0301",
    "\u0308",
    "\x01",
    ">>",
    "<<",
    ">>fra<<",
    "</s>",
    "<unk>",
    "\u6f22",
)


@cache
def tokenizer(kind: str, variant: str) -> Tokenizer:
    with TemporaryDirectory() as folder:
        WRITE[kind](Path(folder), train(kind, **VARIANTS[variant]))
        return Tokenizer(tokenizer_files(load_tokenizer(Path(folder))))


def exact(ours: Tokenizer, text: str) -> int:
    return len(ours.encode(text, add_special_tokens=False).ids)


def mixtures(number: int) -> list[str]:
    """What a normaliser may join, and tags and special tokens in every place."""
    draw = random.Random(7)
    return ["".join(draw.choices(PIECES, k=draw.randint(1, 40))) for _ in range(number)]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_is_never_more_than_the_tokens_of_the_text(kind: str, variant: str) -> None:
    ours = tokenizer(kind, variant)
    bounds = PieceBounds(ours.files)
    for text in [*random_texts(300 * SCALE, seed=6), *mixtures(1000 * SCALE)]:
        assert bounds.at_least(text) <= exact(ours, text), repr(text)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_bounds_a_long_text_without_reading_it(kind: str) -> None:
    ours = tokenizer(kind, "plain")
    text = "a" * 2_000_000
    assert ours.at_least(text, 512) > 512
    assert ours.at_least(f">>fra<<{text}", 512) > 512


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("word", ["мельница ", "река", "天気"])
def test_bounds_a_long_text_of_another_script(kind: str, word: str) -> None:
    assert tokenizer(kind, "plain").at_least(word * 100_000, 512) > 512


@pytest.mark.parametrize("before", ["", "</s>", "</s> "])
def test_a_tag_is_one_token_however_long_it_is(before: str) -> None:
    ours = tokenizer("unigram", "plain")
    text = f"{before}>>{'a' * 5000}<<"
    assert PieceBounds(ours.files).at_least(text) <= exact(ours, text)


def test_knows_nothing_of_a_model_that_cuts_no_words() -> None:
    ours = tokenizer("word", "plain")
    text = "a" * 20_000
    assert ours.at_least(text, 512) <= exact(ours, text)
