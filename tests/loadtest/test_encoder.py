"""Answers of an encoder are compared with the pipeline's: labels and places, and how near a tie was."""

from __future__ import annotations

from encoder import agreement


def scores(**each: float) -> list[list[dict[str, object]]]:
    return [[{"label": label, "score": score} for label, score in each.items()]]


def test_another_label_counts_with_the_lead_that_the_pipelines_own_had():
    theirs = {"good": scores(positive=0.9, negative=0.1), "so so": scores(positive=0.505, negative=0.495)}
    ours = {"good": scores(positive=0.89, negative=0.11), "so so": scores(positive=0.498, negative=0.502)}
    found = agreement(ours, theirs)
    assert (found["texts"], found["equal"]) == (2, 1)
    assert abs(found["largest_difference"] - 0.01) < 1e-9
    assert abs(found["largest_lead"] - 0.01) < 1e-9


def test_equal_labels_have_no_lead():
    answers = {"good": scores(positive=0.9, negative=0.1)}
    assert agreement(answers, answers) == {"texts": 1, "equal": 1, "largest_difference": 0.0, "largest_lead": 0.0}


def test_tags_are_equal_where_label_and_place_are():
    def tag(start: int, score: float) -> list[dict[str, object]]:
        return [{"entity_group": "CITY", "start": start, "end": 9, "score": score}]

    theirs = {"a": tag(4, 0.9), "b": tag(4, 0.9), "c": []}
    ours = {"a": tag(4, 0.8), "b": tag(5, 0.9), "c": []}
    found = agreement(ours, theirs)
    assert (found["texts"], found["equal"], found["largest_lead"]) == (3, 2, None)
