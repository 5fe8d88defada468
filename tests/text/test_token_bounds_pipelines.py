"""A text's least number of tokens is never more than it has, whatever the tokenizer is composed of."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers as norm
from tokenizers import pre_tokenizers as pre

from server.text.token_bounds import TokenBounds
from tests.fuzz.scale import SCALE

NORMALIZERS = (
    None,
    norm.BertNormalizer(),
    norm.Sequence([norm.BertNormalizer(strip_accents=False), norm.NFC()]),
    norm.Sequence([norm.Nmt(), norm.NFKC(), norm.Lowercase()]),
    norm.Sequence([norm.NFD(), norm.StripAccents()]),
    norm.Sequence([norm.Replace(".", ""), norm.NFC()]),
    norm.Sequence([norm.Prepend("▁"), norm.Replace(" ", "▁")]),
    norm.Replace(" ", "Ġ"),
)
PRE_TOKENIZERS = (
    None,
    pre.Whitespace(),
    pre.WhitespaceSplit(),
    pre.BertPreTokenizer(),
    pre.Metaspace(),
    pre.Metaspace(split=False),
    pre.Metaspace(replacement="_", split=False),
    pre.Sequence([pre.Metaspace(split=False), pre.Whitespace()]),
    pre.Sequence([pre.Punctuation("removed"), pre.Metaspace()]),
    pre.ByteLevel(add_prefix_space=False, use_regex=False),
    pre.Sequence([pre.Split(Regex(r"\s+"), "merged_with_next"), pre.ByteLevel(use_regex=False)]),
)
MARKS = "▁Ġ_"
BPE_MERGES = [("a", "b"), ("a", "a"), ("aa", "aa"), *((mark, "a") for mark in MARKS)]
BPE_MERGES_OVER_SPACES = [merge for mark in MARKS for merge in (("a", f"{mark}a"), (f"a{mark}a", "b"))]
ADDED = ("the a b", "Ａ b", "ﬁﬁﬁ", "a\nb", " b", "b ", "b", "aaaaaaaa", "<s>", "a b")


def bpe(letters: str, merges: list[tuple[str, str]], **options: bool) -> Any:
    tokens = [*letters, *".-", *MARKS, *("".join(merge) for merge in merges), "<unk>"]
    return models.BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>", **options)


def word_piece(max_letters: int) -> Any:
    tokens = ("[UNK]", "a", "b", "ab", "##a", "##b", "c")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=max_letters)


MODELS = (
    lambda: bpe("abcAB01", BPE_MERGES),
    lambda: bpe("acAB01", BPE_MERGES[1:], fuse_unk=True),
    lambda: bpe("abc01", BPE_MERGES + BPE_MERGES_OVER_SPACES, ignore_merges=True),
    lambda: models.Unigram([("<unk>", 0.0), *((token, -2.0) for token in "abAB.▁"), ("▁ab", -1.0)], 0),
    lambda: models.Unigram([("<unk>", 0.0), *((token, -2.0) for token in "ac.▁"), ("a▁a", -1.0)], 0),
    lambda: word_piece(3),
    lambda: word_piece(100),
    lambda: models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"),
)
PIECES = (
    "a",
    "b",
    "ab",
    "c",
    " ",
    " a",
    " b",
    "A",
    "B",
    "1",
    ".",
    "-",
    "\n",
    "\t",
    "\x01",
    "\u0301",
    "é",
    "ﬁ",
    "Ａ",
    "中",
)


@pytest.mark.parametrize("make", MODELS)
@settings(max_examples=60 * SCALE, deadline=None)
@given(
    normalizer=st.sampled_from(NORMALIZERS),
    pre_tokenizer=st.sampled_from(PRE_TOKENIZERS),
    added=st.lists(st.tuples(st.sampled_from(ADDED), *[st.booleans()] * 4), max_size=2),
    data=st.data(),
)
def test_no_pipeline_makes_fewer_tokens(
    make: Any, normalizer: Any, pre_tokenizer: Any, added: list[Any], data: st.DataObject
) -> None:
    backend = Backend(make())
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    for content, is_word, lstrip, rstrip, normalized in added:
        token = AddedToken(content, single_word=is_word, lstrip=lstrip, rstrip=rstrip, normalized=normalized)
        backend.add_tokens([token])
    bounds = TokenBounds(backend.to_str())
    pieces = st.sampled_from(PIECES + tuple(content for content, *_ in added))
    texts = st.tuples(st.lists(pieces, max_size=6).map("".join), st.sampled_from([1, 3, 20]))
    for _ in range(5):
        text, times = data.draw(texts)
        text *= times
        assert bounds.at_least(text) <= len(backend.encode(text, add_special_tokens=False).ids)
