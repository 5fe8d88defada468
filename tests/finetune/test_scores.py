"""Scores, against seqeval's published examples and hand-counted ones."""

from __future__ import annotations

import numpy as np
import pytest

from server.finetune.data import TagExample
from server.finetune.scores import label_scores, span_scores
from server.finetune.tasks import token_labels
from server.text.tag_schemes import scheme_of, spans

TRUE = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
PREDICTED = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]


def entity_spans(tags):
    return spans([scheme_of(tags).tags[tag] for tag in tags])


def scored(true, predicted):
    return span_scores(map(set, map(entity_spans, true)), map(set, map(entity_spans, predicted)))


def test_span_scores_are_those_of_seqevals_readme():
    scores = scored(TRUE, PREDICTED)
    assert scores == {
        "f1": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "macro_f1": 0.5,
        "f1/MISC": 0.0,
        "f1/PER": 1.0,
    }


def test_an_entity_without_its_beginning_counts_as_in_seqevals_default_mode():
    assert scored([["B-NP", "I-NP", "O"]], [["I-NP", "I-NP", "O"]])["f1"] == 1.0


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
        ("B-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2)]),
        ("I-PER O I-PER", [("PER", 0, 0), ("PER", 2, 2)]),
        ("S-LOC B-PER I-PER E-PER S-LOC", [("LOC", 0, 0), ("PER", 1, 3), ("LOC", 4, 4)]),
        ("I-PER E-PER I-PER E-PER", [("PER", 0, 1), ("PER", 2, 3)]),
        ("B-PER-X I-PER-X", [("PER-X", 0, 1)]),
        ("O O", []),
        ("", []),
    ],
)
def test_tags_become_spans_in_every_scheme(tags, spans):
    assert entity_spans(tags.split()) == spans


def test_nothing_predicted_scores_zero_without_a_division():
    scores = scored([["B-PER"]], [["O"]])
    assert (scores["precision"], scores["recall"], scores["f1"]) == (0.0, 0.0, 0.0)


def test_macro_f1_weighs_labels_alike():
    # a: 2 of 2 found, 1 wrongly (precision 2/3, recall 1): 0.8. b: 1 of 2 found: 2/3. c: neither true nor predicted.
    true = np.eye(3, dtype=bool)[[0, 0, 1, 1]]
    predicted = np.eye(3, dtype=bool)[[0, 0, 0, 1]]
    scores = label_scores(true, predicted, ["a", "b", "c"])
    assert scores == {
        "macro_f1": pytest.approx((0.8 + 2 / 3) / 2),
        "micro_f1": 0.75,
        "accuracy": 0.75,
        "f1/a": pytest.approx(0.8),
        "f1/b": pytest.approx(2 / 3),
    }


def words(*words):
    return TagExample(words, ("O",) * len(words))


def test_only_the_first_piece_of_a_word_is_labelled():
    # "Oslo" in three pieces, then "is"; the second piece begins with no space, the last with one, as byte-level ones.
    offsets = [(0, 0), (0, 1), (1, 3), (3, 4), (4, 7), (0, 0)]
    assert token_labels(words("Oslo", "is"), [5, 0], offsets, [1, 0, 0, 0, 0, 1]) == [-100, 5, -100, -100, 0, -100]


def test_a_word_without_pieces_moves_no_label():
    # The middle word vanished in normalisation.
    assert token_labels(words("a", "\u200b", "b"), [1, 2, 3], [(0, 1), (4, 5)], [0, 0]) == [1, 3]


def test_a_piece_of_several_words_has_the_label_of_the_first():
    # Three characters, the last two in one piece, and one more.
    offsets = [(0, 1), (1, 3), (3, 4)]
    assert token_labels(words("\u5728", "\u5317", "\u4eac", "\u5e02"), [0, 1, 2, 3], offsets, [0, 0, 0]) == [0, 1, 3]
