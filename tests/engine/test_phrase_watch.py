"""What watching a sequence's tokens for phrases promises, for tokens that are any bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.phrases import PhraseMatcher, PhraseWatch
from server.phrases import folded
from tests.engine.pieces import Pieces


def watch_of(tokens: list[bytes], *phrases: str, fold: bool = True) -> PhraseWatch:
    return PhraseWatch(PhraseMatcher(phrases, fold=fold), Pieces(tokens))


def spell(tokens: list[bytes], *phrases: str) -> list[tuple[int | None, int]]:
    """What each push of the tokens, one after the other, returns, and how many tokens are held after it."""
    watch = watch_of(tokens, *phrases)
    return [(watch.push(i + 1), watch.num_held) for i in range(len(tokens))]


def test_the_way_back_leads_to_the_token_with_which_the_phrase_begins() -> None:
    assert spell([b"The", b" FO", b"o", b"B", b"arn"], "foobar") == [
        (None, 0),
        (None, 1),
        (None, 2),
        (None, 3),
        (1, 0),
    ]


def test_characters_split_over_tokens_count_from_their_first_byte() -> None:
    first, second = "天".encode(), "气".encode()
    pieces = [b"x", first[:1], first[1:2], first[2:], second[:2], second[2:]]
    assert spell(pieces, "天气") == [(None, 0), (None, 1), (None, 2), (None, 3), (None, 4), (1, 5)]


def test_a_broken_character_is_no_part_of_a_phrase() -> None:
    first = "天".encode()
    assert spell([first[:2], b"a", first[:2], first, b"b"], "ab", "天b") == [
        (None, 1),
        (None, 1),
        (None, 2),
        (None, 1),
        (3, 2),
    ]


def test_special_tokens_inside_a_phrase_do_not_hide_it() -> None:
    watch = watch_of([b"foo", b"bar"], "foobar")
    assert [watch.push(1), watch.push(0), watch.push(2)] == [None, None, 0]


def test_of_several_phrases_in_a_token_the_earliest_start_counts() -> None:
    watch = watch_of([b"xa", b"bcd"], "cd", "abc")
    assert [watch.push(1), watch.push(2)] == [None, 0]


def test_stop_strings_count_in_their_own_case_and_with_their_spaces() -> None:
    watch = watch_of([b"a", b"\n", b"\nUser", b":"], "\n\nUser:", fold=False)
    assert [watch.push(i) for i in (1, 2, 3)] == [None] * 3
    assert watch.completes(4)
    assert not watch.completes(1)
    assert watch.push(4) == 1


def test_asking_changes_nothing_and_forks_part() -> None:
    watch = watch_of([b"foo", b"bar", b"\xe5"], "foobar", "天")
    watch.push(1)
    assert watch.completes(2)
    fork = watch.fork()
    assert fork.push(3) is None
    assert (fork.num_held, watch.num_held) == (2, 1)
    assert not fork.completes(2)
    assert watch.push(2) == 0


PHRASES = ["ab", "Bca", "天气", "气a", "😀", "ß", "İ", "aa b"]
BYTES = "abcAB 天气😀ßẞİıIsi\u0307".encode()


@st.composite
def token_streams(draw: st.DrawFn) -> list[bytes]:
    """Text cut at any byte, with bytes here and there that are no text."""
    parts = draw(
        st.lists(st.one_of(st.sampled_from(PHRASES), st.text(alphabet="abcAB 天气😀ßẞİıIs", max_size=4)), max_size=6)
    )
    data = bytearray("".join(parts).encode())
    for at in draw(st.lists(st.integers(0, len(data)), max_size=2)):
        data.insert(at, draw(st.sampled_from(BYTES)))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [bytes(data[i:j]) for i, j in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def is_clean(data: bytes, phrases: list[str]) -> bool:
    text = folded(data.decode(errors="replace"))
    return not any(folded(phrase) in text for phrase in phrases)


@settings(max_examples=1000, deadline=None)
@given(tokens=token_streams(), phrases=st.lists(st.sampled_from(PHRASES), min_size=1, max_size=4))
def test_what_is_not_held_never_holds_a_phrase_and_the_way_back_is_always_among_the_held(
    tokens: list[bytes], phrases: list[str]
) -> None:
    watch = watch_of(tokens, *phrases)
    num_sent = 0
    for i in range(len(tokens)):
        completes = watch.completes(i + 1)
        position = watch.push(i + 1)
        assert completes == (position is not None)
        if position is None:
            assert is_clean(b"".join(tokens[: i + 1]), phrases)
            num_sent = max(num_sent, i + 1 - watch.num_held)
            assert is_clean(b"".join(tokens[:num_sent]), phrases)
        else:
            assert not is_clean(b"".join(tokens[: i + 1]), phrases)
            assert num_sent <= position
            assert is_clean(b"".join(tokens[:position]), phrases)
            return
    assert is_clean(b"".join(tokens), phrases)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_how_a_text_was_cut_changes_nothing_that_is_found(size: int) -> None:
    data = b"wir gehen auf der STRASSE"
    tokens = [data[i : i + size] for i in range(0, len(data), size)]
    watch = watch_of(tokens, "Straße")
    found = [watch.push(i + 1) for i in range(len(tokens))]
    assert found[-1] == data.index(b"STRASSE") // size
    assert found[:-1] == [None] * (len(tokens) - 1)
