"""Texts become sentences by their punctuation, whatever the script, and nothing of them is lost."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.sentence_split import ABBREVIATIONS, join_sentences, split_sentences, worded_sentences


def texts(text: str) -> list[str]:
    return [sentence.text for sentence in split_sentences(text)]


@given(st.text() | st.text(alphabet=' .!?\n。！？"”)aB1…च।', max_size=60))
def test_gaps_and_sentences_in_turn_are_the_text(text: str):
    sentences = split_sentences(text)
    assert "".join(sentence.gap + sentence.text for sentence in sentences) == text.rstrip()
    assert all(sentence.text.strip() == sentence.text != "" for sentence in sentences)
    assert all(sentence.gap.strip() == "" for sentence in sentences)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ('He said: "Go." Then he left.', ['He said: "Go."', "Then he left."]),
        ("Really?! Yes... Well.", ["Really?!", "Yes...", "Well."]),
        ("Version 3.14 is out. See sluice.toml now.", ["Version 3.14 is out.", "See sluice.toml now."]),
        ("Mr. Smith met Dr. No, e.g. Monday.", ["Mr. Smith met Dr. No, e.g. Monday."]),
        ("J. R. R. Tolkien wrote it. I read it.", ["J. R. R. Tolkien wrote it.", "I read it."]),
        ("It cost approx. five euros. cheap.", ["It cost approx. five euros. cheap."]),
        ("今天天气很好。我们去公园吧！你呢？", ["今天天气很好。", "我们去公园吧！", "你呢？"]),
        ("彼は「行く。」と言った。私も！", ["彼は「行く。」", "と言った。", "私も！"]),
        ("他说：OK.我走了。", ["他说：OK.", "我走了。"]),
        ("यह एक घर है। वह बड़ा है।", ["यह एक घर है।", "वह बड़ा है।"]),
        ("كيف حالك؟ أنا بخير.", ["كيف حالك؟", "أنا بخير."]),
        ("A title\n\nA line\nAnother", ["A title", "A line", "Another"]),
        ("", []),
        (" \n\t", []),
    ],
)
def test_marks_and_line_ends_end_a_sentence_and_abbreviations_do_not(text: str, expected: list[str]):
    assert texts(text) == expected


@pytest.mark.parametrize("word", sorted(ABBREVIATIONS))
def test_no_abbreviation_ends_a_sentence(word: str):
    assert len(texts(f"We saw {word}. Miller.")) == 1


def joined(text: str, translations: list[str]) -> str:
    return join_sentences([sentence.gap for sentence in split_sentences(text)], translations)


def test_sentences_are_joined_as_the_script_of_the_output_joins_them():
    assert joined("你好。再见。", ["Hello.", "Bye."]) == "Hello. Bye."
    assert joined("Hello.  Bye.", ["你好。", "再见。"]) == "你好。再见。"
    assert joined("One. Two.", ["하나.", "둘."]) == "하나. 둘."
    assert joined("One.\n\n  Two. Three.", ["Um.", "Dois.", "Três."]) == "Um.\n\n  Dois. Três."


def test_what_is_not_changed_is_joined_to_what_it_was():
    text = "One. Two!\n\n\tThree?\n四。五！"
    assert joined(text, texts(text)) == text


def test_parts_without_words_are_kept_where_they_stand():
    text = "One.\n***\nTwo. ... Three! 😍\n--\n"
    sentences = list(worded_sentences(text))
    assert [sentence.text for sentence in sentences] == ["One.", "Two.", "Three!"]
    gaps = [sentence.gap for sentence in sentences]
    assert join_sentences(gaps, ["Um.", "Dois.", "Três!"]) == "Um.\n***\nDois. ... Três!"
    assert [sentence.tail for sentence in sentences] == ["", "", " 😍\n--"]
    assert list(worded_sentences("... 😍\n--")) == []


@pytest.mark.parametrize(
    "text", ["." * 200_000, "mill. " * 120_000, "Mill. " * 120_000, "\n" * 200_000, ' "' * 100_000, "。」" * 100_000]
)
def test_a_long_text_takes_time_by_its_length(text: str):
    start_s = time.perf_counter()
    split_sentences(text)
    assert time.perf_counter() - start_s < 5
