"""Blank texts and texts of unknown characters alone, of which an encoder-decoder model would make something up."""

from __future__ import annotations

import pytest

from tests.api.test_translate import post
from tests.api.translators import IN_WORDS, TAGGED, client_of, translator
from tests.tiny_tokenizers import tokenizer_files


@pytest.mark.parametrize("path", ["/generate", "/summarize", "/translate"])
@pytest.mark.parametrize("text", ["", " ", "\u0000", "\u200b\n"])
def test_a_blank_text_is_refused(path: str, text: str):
    worker = translator("plain", None)
    error = post(client_of(worker), path, 422, inputs=text)
    assert error["param"] == "inputs"
    assert "must have at least one token that is more than spaces" in error["message"]
    assert not worker.commands


def test_a_blank_text_is_refused_behind_words_for_a_task():
    client = client_of(translator("t5", IN_WORDS, summary_prefix="summarize: "))
    for path in ("/summarize", "/translate"):
        assert post(client, path, 422, inputs=" ")["param"] == "inputs"
        assert post(client, path, 422, inputs=["a", ""])["param"] == "inputs"


@pytest.mark.parametrize("path", ["/generate", "/summarize", "/translate"])
def test_a_text_of_unknown_characters_alone_is_refused(path: str):
    client = client_of(translator("plain", None, tokenizer=tokenizer_files("metaspace")))
    error = post(client, path, 422, inputs="\u13a0 \u13a1")
    assert error["param"] == "inputs"
    assert "the model's vocabulary has no token for any part of this text" in error["message"]


def test_blank_lines_of_a_text_that_is_split_are_kept_and_not_sent():
    worker = translator("plain", None)
    replies = post(client_of(worker), inputs="One.\n\u200b\nTwo.", split="sentences")
    assert replies == [{"translation_text": "ONE.\n\u200b\nTWO."}]
    assert len(worker.commands) == 2


def test_a_text_that_is_only_the_tag_of_its_target_is_refused():
    client = client_of(translator("opus", TAGGED))
    assert post(client, inputs=">>fra<< a") == [{"translation_text": ">>FRA<< A"}]
    assert post(client, status=422, inputs=">>fra<< ")["param"] == "inputs"


def test_a_tag_in_a_text_that_is_split_is_refused():
    error = post(client_of(translator("opus", TAGGED)), status=422, inputs=">>fra<< A. B.", split="sentences")
    assert error["param"] == "split" and "tgt_lang" in error["message"]
