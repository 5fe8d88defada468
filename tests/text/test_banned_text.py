"""What the last look at a text promises: no banned phrase in anything that was passed on."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.phrases import PhraseMatcher, folded
from server.text.banned_text import BannedText

ALPHABET = "aAbB ßsSİIıi\u0307天气😀"


def passed_on(pieces: list[str], phrases: list[str]) -> tuple[list[str], bool]:
    guard = BannedText(PhraseMatcher(phrases, fold=True))
    deltas = [guard.push(piece) for piece in pieces]
    return [*deltas, guard.finish()], guard.found


def by_definition(text: str, phrases: list[str]) -> str | None:
    """The text before the phrase that is complete first, the longest of several; None where there is none."""
    for end in range(1, len(text) + 1):
        if any(folded(phrase.strip()) in folded(text[:end]) for phrase in phrases):
            starts = range(end)
            return text[: min(s for s in starts if any(begins(text[s:end], phrase) for phrase in phrases))]
    return None


def begins(text: str, phrase: str) -> bool:
    """Whether the phrase begins within the text's first character, that it takes to the last one."""
    phrase, first, whole = folded(phrase.strip()), folded(text[0]), folded(text)
    return any(whole[i:].startswith(phrase) for i in range(len(first)))


@settings(max_examples=1000, deadline=None)
@given(
    pieces=st.lists(st.text(alphabet=ALPHABET, max_size=5), max_size=10),
    phrases=st.lists(
        st.text(alphabet=ALPHABET, min_size=1, max_size=4).filter(lambda p: folded(p.strip())), min_size=1, max_size=4
    ),
)
def test_a_text_is_passed_on_whole_or_up_to_its_first_banned_phrase(pieces: list[str], phrases: list[str]) -> None:
    deltas, found = passed_on(pieces, phrases)
    sent = ""
    for delta in deltas:
        sent += delta
        assert not any(folded(phrase.strip()) in folded(sent) for phrase in phrases)
    expected = by_definition("".join(pieces), phrases)
    assert found == (expected is not None)
    assert sent == ("".join(pieces) if expected is None else expected)


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("xx ẞtraße yy", "SSTRASSE", "xx "),
        ("ßßß STRASSE", "straße", "ßßß "),
        ("İİİ İstanbul", "istanbul", "İİİ "),
        ("日本語の天气", "天气", "日本語の"),
        ("one 😀👍 two", "👍", "one 😀"),
    ],
)
def test_the_cut_is_where_the_phrase_begins_in_the_text_as_it_is_written(text: str, phrase: str, expected: str) -> None:
    for size in (1, 2, 100):
        deltas, found = passed_on([text[i : i + size] for i in range(0, len(text), size)], [phrase])
        assert ("".join(deltas), found) == (expected, True)


def test_only_what_may_become_a_banned_phrase_is_held_back() -> None:
    deltas, found = passed_on(["say ", "FO", "o", " now", " foo", "t"], ["foobar", "now!"])
    assert deltas == ["say ", "", "", "FOo ", "now ", "foot", ""]
    assert not found


def test_nothing_is_passed_on_after_a_banned_phrase() -> None:
    guard = BannedText(PhraseMatcher(["bad"], fold=True))
    assert [guard.push("a bAd day"), guard.push("good"), guard.finish()] == ["a ", "", ""]
