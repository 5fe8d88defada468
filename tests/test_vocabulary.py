"""What a token's bytes are, for every kind of tokenizer."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from server.vocabulary import TokenBytes
from tests.tiny_tokenizers import KINDS, tokenizer_files

TEXTS = [
    "The river runs past the mill, and the miller counts.",
    "今天天气很好，我们去公园散步。你好，世界！",
    "😀🚀 family: 👨‍👩‍👧 heart ❤️ flag 🇩🇪 end",
    "naïve cafés — Über den Flüssen",
]
SPLITS_CHARACTERS = ["byte_level", "byte_level_in_a_sequence", "byte_fallback", "byte_fallback_strip"]


def backend(kind: str) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_files(kind).tokenizer_json)


def token_bytes(kind: str, vocab_size: int = 1000) -> TokenBytes:
    return TokenBytes(tokenizer_files(kind), vocab_size)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_tokens_joined_are_their_text(kind: str, text: str) -> None:
    ids = backend(kind).encode(text).ids
    joined = b"".join(map(token_bytes(kind).token_bytes, ids)).decode()
    decoded = backend(kind).decode(ids)
    if kind == "word_piece":
        # Its decoder takes spaces away before punctuation once the whole text is known.
        joined, decoded = joined.replace(" ", ""), decoded.replace(" ", "")
    assert joined.strip(" ") == decoded.strip(" ")


@pytest.mark.parametrize("kind", SPLITS_CHARACTERS)
def test_a_character_may_be_spread_over_tokens(kind: str) -> None:
    vocabulary = token_bytes(kind)
    pieces = [vocabulary.token_bytes(id_) for id_ in backend(kind).encode("龘").ids]
    assert len(pieces) > 1
    assert b"".join(pieces).strip() == "龘".encode()


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_and_ids_beyond_the_tokenizer_have_no_bytes(kind: str) -> None:
    vocabulary = token_bytes(kind)
    assert vocabulary.special_ids
    for id_ in [*vocabulary.special_ids, 999, 1000, -1]:
        assert vocabulary.token_bytes(id_) == b""


@pytest.mark.parametrize("kind", KINDS)
def test_all_bytes_are_as_many_as_the_model_has_tokens(kind: str) -> None:
    vocabulary = token_bytes(kind, vocab_size=50)
    assert list(vocabulary.all_bytes()) == [vocabulary.token_bytes(id_) for id_ in range(50)]


@pytest.mark.parametrize(("kind", "word"), [("metaspace", "▁the"), ("word_piece", "the"), ("no_decoder", "the")])
def test_a_word_brings_its_space(kind: str, word: str) -> None:
    assert token_bytes(kind).token_bytes(backend(kind).token_to_id(word)) == b" the"
