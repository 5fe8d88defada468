"""Spans, their places in a text, and the answers that windows give together."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.text import answers
from server.text.answers import AnswerRules, Context, WindowLogits, best_spans, find_answers

TEXT = "Ann met Bob."
OFFSETS = [(0, 3), (4, 7), (8, 11), (11, 12)]


def read(*rows: tuple[float, float], nothing: tuple[float, float] | None = None, first: int = 0) -> WindowLogits:
    special = None if nothing is None else np.array(nothing, dtype=np.float32)
    return WindowLogits(range(first, first + len(rows)), np.array(rows, dtype=np.float32), special)


def words(text: str = TEXT, offsets: list[tuple[int, int]] = OFFSETS) -> Context:
    return Context(text, offsets, list(range(len(offsets))))


@settings(max_examples=60)
@given(st.data())
def test_the_best_spans_are_those_that_trying_all_finds(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 9))
    numbers = st.lists(st.floats(0, 1, width=32), min_size=size, max_size=size)
    both_C2 = np.array([data.draw(numbers), data.draw(numbers)], dtype=np.float64).T
    solid_C = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    max_tokens, num_spans = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 20))
    every = [
        (first, last, both_C2[first, 0] * both_C2[last, 1])
        for first in range(size)
        for last in range(first, min(size, first + max_tokens))
        if solid_C[first : last + 1].any()
    ]
    found = best_spans(both_C2, solid_C, max_tokens=max_tokens, num_spans=num_spans)
    wanted = sorted((score for *_, score in every), reverse=True)[:num_spans]
    assert [score for *_, score in found] == wanted
    assert set(found) <= set(every)


def test_blocks_of_starts_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    both_C2 = np.random.default_rng(1).random((50, 2))
    solid_C = np.full(50, True)
    whole = best_spans(both_C2, solid_C, max_tokens=7, num_spans=9)
    monkeypatch.setattr(answers, "_BLOCK", 20)
    assert best_spans(both_C2, solid_C, max_tokens=7, num_spans=9) == whole


def test_a_context_without_the_answer_has_the_empty_answer() -> None:
    window = read((0, 0), (0, 0), (1, 1), (0, 0), nothing=(9, 9))
    [best] = find_answers(words(), [window], AnswerRules(may_be_impossible=True))
    assert best == ("", pytest.approx(1, abs=0.01), 0, 0)
    [best] = find_answers(words(), [window], AnswerRules())
    assert best.answer == "Bob"


def test_the_empty_answer_has_the_score_of_the_window_that_is_least_sure_of_it() -> None:
    sure, unsure = read((0, 0), (0, 0), nothing=(9, 9)), read((9, 9), (0, 0), nothing=(0, 0), first=2)
    found = find_answers(words(), [sure, unsure], AnswerRules(top_k=2, may_be_impossible=True))
    assert found[0].answer == "Bob"
    assert all(answer.answer or answer.score < 0.01 for answer in found)


def test_an_answer_of_two_windows_has_the_better_score() -> None:
    alone = find_answers(words(), [read((0, 0), (5, 5), (1, 1))], AnswerRules())
    both = find_answers(words(), [read((0, 0), (2, 2), (1, 1)), read((5, 5), (1, 1), (0, 0), first=1)], AnswerRules())
    assert both[0].answer == alone[0].answer == "met"
    assert both[0].score == pytest.approx(alone[0].score, abs=0.01) and both[0].score < 1


def test_the_pieces_of_a_word_are_one_answer() -> None:
    context = Context("Hans-Peter sings", [(0, 4), (4, 5), (5, 10), (11, 14), (14, 16)], [0, 0, 0, 1, 1])
    window = read((3, 3), (0, 0), (3, 3), (0, 0), (0, 0))
    [best] = find_answers(context, [window], AnswerRules())
    assert (best.answer, best.start, best.end) == ("Hans-Peter", 0, 10)
    assert best.score > 0.5
    pieces = find_answers(context, [window], AnswerRules(whole_words=False, top_k=3))
    assert {"Hans", "Peter"} <= {answer.answer for answer in pieces}


def test_a_word_of_a_script_without_spaces_is_not_one_answer() -> None:
    text = "\u5f20\u4e09\u4f4f\u5728\u5317\u4eac"
    context = Context(text, [(0, 2), (2, 4), (4, 6)], [0, 0, 0])
    [best] = find_answers(context, [read((0, 0), (0, 0), (4, 4))], AnswerRules())
    assert (best.answer, best.start, best.end) == (text[4:], 4, 6)


def test_marks_that_the_tokenizer_drops_belong_to_the_answer() -> None:
    text = "at cafe\u0301 noon"
    context = words(text, [(0, 2), (3, 7), (9, 13)])
    [best] = find_answers(context, [read((0, 0), (4, 4), (0, 0))], AnswerRules())
    assert best.answer == "cafe\u0301"


def test_a_token_of_spaces_is_no_answer() -> None:
    context = words("a  b", [(0, 1), (1, 3), (3, 4)])
    found = find_answers(context, [read((0, 0), (9, 9), (0, 0))], AnswerRules(top_k=9, whole_words=False))
    assert {answer.answer for answer in found} == {"a", "b", "a  b"}


@pytest.mark.timeout(30)
def test_a_word_as_long_as_the_text_costs_no_more_than_words() -> None:
    size = 40_000
    context = Context("e" + "\u0301" * size, [(0, 1), *((i, i + 1) for i in range(1, size))], [0] * size)
    even = np.zeros((40, 2), dtype=np.float32)
    windows = [WindowLogits(range(start, start + 40), even, None) for start in range(0, size - 39, 20)]
    [best] = find_answers(context, windows, AnswerRules())
    assert (best.start, best.end) == (0, size + 1)


def test_memory_for_answers_does_not_grow_with_the_windows() -> None:
    size, length = 4_000, 40
    text = "".join(f"{place:5}" for place in range(size))
    context = words(text, [(5 * place, 5 * place + 5) for place in range(size)])
    numbers = np.random.default_rng(1).random((size, 2)).astype(np.float32)
    rules = AnswerRules(top_k=200, max_tokens=length)

    def peak(num_windows: int) -> int:
        cuts = [range(start, start + length) for start in range(0, num_windows * length, length)]
        windows = [WindowLogits(cut, numbers[cut.start : cut.stop], None) for cut in cuts]
        tracemalloc.start()
        assert len(find_answers(context, windows, rules)) == 200
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few = peak(5)
    assert peak(100) < 1.5 * few


def test_answers_that_are_dropped_on_the_way_would_not_have_been_among_the_best() -> None:
    rng = np.random.default_rng(2)
    context = words("a b c a b c", [(place, place + 1) for place in range(0, 11, 2)])
    windows = [
        WindowLogits(range(start, start + 3), rng.normal(size=(3, 2)).astype(np.float32), None)
        for start in (0, 1, 2, 3)
    ]
    every = find_answers(context, windows, AnswerRules(top_k=40, whole_words=False))
    for top_k in range(1, 7):
        found = find_answers(context, windows, AnswerRules(top_k=top_k, whole_words=False))
        assert [answer.score for answer in found] == pytest.approx([answer.score for answer in every[:top_k]])
