"""What the front's tokenizer promises."""

from __future__ import annotations

import threading
import time

import pytest
from tokenizers import Tokenizer as Backend

from server.errors import InvalidParameter
from server.protocol import TokenizerFiles
from server.text.tokenizer import Tokenizer, tokenizer_of
from tests.tiny_tokenizers import BOS, EOS, UNK, tokenizer_files


def test_offsets_count_characters_of_the_text_as_given() -> None:
    text = "The 😀😀 MILL, ❤️ runs"
    encoding = Tokenizer(tokenizer_files("word_piece")).encode(text)
    for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
        assert token == UNK or text[start:end].lower() == token.removeprefix("##")
    assert encoding.offsets[-1][1] == len(text)


def test_truncation_and_padding_in_the_file_are_not_applied() -> None:
    backend = Backend.from_str(tokenizer_files("byte_level").tokenizer_json)
    backend.enable_truncation(4)
    backend.enable_padding(length=300)
    tokenizer = Tokenizer(TokenizerFiles(tokenizer_json=backend.to_str()))
    text = "The miller counts the sacks of flour every morning"
    ids = tokenizer.encode(text).ids
    assert 4 < len(ids) < 300
    assert tokenizer.decode(ids) == text


def test_special_tokens_are_known_and_skipped_in_decoding_only_if_asked() -> None:
    tokenizer = Tokenizer(tokenizer_files("byte_level"))
    ids = [tokenizer.backend.token_to_id(token) for token in (BOS, EOS, UNK)]
    assert tokenizer.special_ids == frozenset(ids)
    assert tokenizer.decode(ids) == ""
    assert tokenizer.decode(ids, skip_special_tokens=False) == BOS + EOS + UNK
    assert tokenizer.token_text(ids[0]) == BOS


def test_an_id_above_the_vocabulary_has_no_text() -> None:
    tokenizer = Tokenizer(tokenizer_files("byte_level"))
    assert tokenizer.decode([tokenizer.backend.get_vocab_size() + 7]) == ""
    assert not tokenizer.has_text(tokenizer.backend.get_vocab_size() + 7)


def test_a_pair_is_encoded_together() -> None:
    encoding = Tokenizer(tokenizer_files("word_piece")).encode("The mill", "the river")
    assert set(encoding.sequence_ids) == {0, 1}


def test_other_threads_run_while_a_long_text_is_encoded() -> None:
    tokenizer = Tokenizer(tokenizer_files("byte_level"))
    encoding = threading.Thread(target=tokenizer.encode, args=["The miller counts the sacks of flour. " * 20_000])
    num_turns = 0
    encoding.start()
    while encoding.is_alive():
        time.sleep(0.001)
        num_turns += 1
    assert num_turns > 5


@pytest.mark.parametrize("value", range(256))
def test_every_byte_has_its_character_in_the_byte_level_alphabet(value: int) -> None:
    tokenizer = Tokenizer(tokenizer_files("byte_level"))
    character = Backend.from_str(tokenizer.files.tokenizer_json).pre_tokenizer.pre_tokenize_str(
        bytes([value]).decode("latin-1")
    )[0][0]
    ids = [tokenizer.backend.token_to_id(part) for part in character]
    assert b"".join(tokenizer.token_bytes(id_) for id_ in ids) == chr(value).encode()


def test_sources_and_targets_have_vocabularies_of_their_own_sizes() -> None:
    files = tokenizer_files("byte_level")
    text, num_tokens = "The miller counts", Backend.from_str(files.tokenizer_json).get_vocab_size()
    wider = Tokenizer(files, vocab_size=1, source_vocab_size=num_tokens)
    assert wider.encode(text).ids
    with pytest.raises(InvalidParameter):
        wider.target.encode(text)
    narrower = Tokenizer(files, vocab_size=num_tokens, source_vocab_size=1)
    assert narrower.target.encode(text).ids
    with pytest.raises(InvalidParameter):
        narrower.encode(text)


def test_one_vocabulary_is_read_once() -> None:
    tokenizer = Tokenizer(tokenizer_files("byte_level"), vocab_size=900)
    assert tokenizer.target is tokenizer


def test_models_with_equal_files_share_a_tokenizer() -> None:
    first, equal = (tokenizer_of(tokenizer_files("word_piece"), 100) for _ in range(2))
    assert first is equal
    assert tokenizer_of(tokenizer_files("word_piece"), 101) is not first
    assert tokenizer_of(tokenizer_files("byte_level"), 100) is not first
