"""What finding phrases in a text promises, in any case and wherever they begin."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.phrases import PhraseMatcher, PhraseScan, fold, folded


def found_in(text: str, phrases: list[str], *, fold: bool) -> tuple[int, int] | None:
    """Start and end of the phrase that is complete first."""
    scan = PhraseScan(PhraseMatcher(phrases, fold=fold))
    for end, character in enumerate(text, start=1):
        start = scan.advance(character, end - 1)
        if start is not None:
            return start, end
    return None


def found_by_definition(text: str, phrases: list[str]) -> tuple[int, int] | None:
    for end in range(len(text) + 1):
        starts = [end - len(phrase) for phrase in phrases if text[:end].endswith(phrase)]
        if starts:
            return min(starts), end
    return None


def test_every_character_is_the_same_in_every_case() -> None:
    for code in range(sys.maxunicode + 1):
        if 0xD800 <= code < 0xE000:
            continue
        character = chr(code)
        variants = {character.lower(), character.upper(), character.casefold(), character.title()}
        for variant in variants - {character}:
            assert folded(variant) == fold(character), (character, variant)


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("The FooBar!", "foobar", (4, 10)),
        ("auf der Straße", "STRASSE", (8, 14)),
        ("STRASSE", "straße", (0, 7)),
        ("in İSTANBUL", "istanbul", (3, 11)),
        ("KIRMIZI", "kırmızı", (0, 7)),
        ("i\u0307stanbul", "İstanbul", (0, 9)),
        ("ΟΔΥΣΣΕΥΣ", "οδυσσευς", (0, 8)),
        ("今天天气很好", "天气", (2, 4)),
        ("a 🚀 b", "🚀", (2, 3)),
        ("gross aß", "as", (6, 8)),
        ("xx aß", "ASS", (3, 5)),
        ("x New  York", " New ", (2, 5)),
    ],
)
def test_phrases_are_found_in_any_case(text: str, phrase: str, expected: tuple[int, int]) -> None:
    assert found_in(text, [phrase], fold=True) == expected


def test_without_folding_a_phrase_is_what_is_written() -> None:
    assert found_in("stop\n\nStop", ["Stop"], fold=False) == (6, 10)
    assert found_in("a b\n\n", ["\n\n"], fold=False) == (3, 5)


@settings(max_examples=500, deadline=None)
@given(
    text=st.text(alphabet="abc", max_size=40),
    phrases=st.lists(st.text(alphabet="abc", min_size=1, max_size=6), min_size=1, max_size=6),
)
def test_the_first_phrase_is_found_where_it_begins(text: str, phrases: list[str]) -> None:
    assert found_in(text, phrases, fold=False) == found_by_definition(text, phrases)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(alphabet="abc", max_size=40),
    phrases=st.lists(st.text(alphabet="abc", min_size=2, max_size=6), min_size=1, max_size=6),
)
def test_the_first_mark_is_where_the_longest_beginning_of_a_phrase_stands(text: str, phrases: list[str]) -> None:
    scan = PhraseScan(PhraseMatcher(phrases, fold=False))
    for position, character in enumerate(text):
        scan.advance(character, position)
        so_far = text[: position + 1]
        tails = (so_far[start:] for start in range(position + 1))
        longest = next((tail for tail in tails if any(phrase.startswith(tail) for phrase in phrases)), "")
        assert scan.first_mark == (position + 1 - len(longest) if longest else None)


def test_of_phrases_that_end_inside_one_character_the_longest_counts() -> None:
    assert found_in("xx aß", ["as", "xx ass"], fold=True) == (0, 5)


@pytest.mark.parametrize("phrase", ["", "   ", "\u0307"])
def test_a_phrase_of_nothing_is_refused(phrase: str) -> None:
    with pytest.raises(ValueError, match="at least one character"):
        PhraseMatcher(["fine", phrase], fold=True)


def test_a_fork_and_its_parent_do_not_change_each_other() -> None:
    parent = PhraseScan(PhraseMatcher(["abc"], fold=True))
    parent.advance("a", 0)
    child = parent.fork()
    assert child.advance("b", 1) is None
    assert child.advance("c", 2) == 0
    assert parent.advance("c", 1) is None
    assert parent.first_mark is None


def test_ten_thousand_phrases_cost_no_more_per_character_than_one() -> None:
    """The work is counted in states visited."""
    phrases = [f"word{i:04d}" for i in range(10_000)]
    matcher = PhraseMatcher(phrases, fold=True)
    visited = 0
    advance = matcher.advance

    def counting(state: int, unit: str) -> int:
        nonlocal visited
        visited += 1
        return advance(state, unit)

    matcher.advance = counting  # type: ignore[method-assign]
    scan = PhraseScan(matcher)
    text = "Words and word123 and word99x " * 50
    assert all(scan.advance(character, 0) is None for character in text)
    assert visited == len(text)
