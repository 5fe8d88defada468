"""Held-out scores: F1 of labels, of whole entities as conlleval and seqeval count them, of answers as SQuAD does."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence, Set

import numpy as np
from numpy.typing import NDArray

Span = tuple[str, int, int]
"""Type, start, end."""


def _f1(num_correct: int, num_predicted: int, num_true: int) -> tuple[float, float, float]:
    """Precision, recall and F1; 0 where nothing can be divided."""
    precision = num_correct / num_predicted if num_predicted else 0.0
    recall = num_correct / num_true if num_true else 0.0
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0.0


def span_scores(true: Iterable[Set[Span]], predicted: Iterable[Set[Span]]) -> dict[str, float]:
    """Micro precision, recall and F1 of the entities of some texts; ``f1/TYPE`` of each type, and their mean.

    A predicted entity counts only if its type, start and end are all right.
    """
    num_correct: Counter[str] = Counter()
    num_predicted: Counter[str] = Counter()
    num_true: Counter[str] = Counter()
    for true_spans, predicted_spans in zip(true, predicted, strict=True):
        num_true.update(kind for kind, *_ in true_spans)
        num_predicted.update(kind for kind, *_ in predicted_spans)
        num_correct.update(kind for kind, *_ in true_spans & predicted_spans)
    precision, recall, f1 = _f1(num_correct.total(), num_predicted.total(), num_true.total())
    kinds = sorted(num_true.keys() | num_predicted.keys())
    by_kind = {f"f1/{kind}": _f1(num_correct[kind], num_predicted[kind], num_true[kind])[2] for kind in kinds}
    macro_f1 = sum(by_kind.values()) / len(by_kind) if by_kind else 0.0
    return {"f1": f1, "precision": precision, "recall": recall, "macro_f1": macro_f1, **by_kind}


def label_scores(
    true_NL: NDArray[np.bool_], predicted_NL: NDArray[np.bool_], labels: Sequence[str]
) -> dict[str, float]:
    """Macro and micro F1, share of texts with exactly the right labels, and ``f1/LABEL``, from one-hot rows.

    The macro average is over the labels that occur, in truth or prediction, as in scikit-learn.
    """
    num_correct = (true_NL & predicted_NL).sum(axis=0)
    num_predicted, num_true = predicted_NL.sum(axis=0), true_NL.sum(axis=0)
    by_label = {
        f"f1/{label}": _f1(int(num_correct[i]), int(num_predicted[i]), int(num_true[i]))[2]
        for i, label in enumerate(labels)
        if num_predicted[i] or num_true[i]
    }
    return {
        "macro_f1": sum(by_label.values()) / len(by_label) if by_label else 0.0,
        "micro_f1": _f1(int(num_correct.sum()), int(num_predicted.sum()), int(num_true.sum()))[2],
        "accuracy": float((true_NL == predicted_NL).all(axis=1).mean()),
        **by_label,
    }


def answer_scores(true: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    """F1 and exact match of answers, as SQuAD counts them: the best over the true answers of each question.

    A question without true answers has the empty one. ``f1/answered`` and ``f1/impossible`` are of the questions with
    and without, where there are both.

    >>> answer_scores([["the Rhine"], []], ["Rhine river", ""])["f1"] == (2 / 3 + 1) / 2
    True
    """
    exact = [max(_words(answer) == _words(each) for each in wanted or [""]) for wanted, answer in _zip(true, predicted)]
    f1 = [max(_word_f1(each, answer) for each in wanted or [""]) for wanted, answer in _zip(true, predicted)]
    scores = {"f1": float(np.mean(f1)), "exact_match": float(np.mean(exact))}
    by_kind = {
        kind: [score for score, wanted in zip(f1, true, strict=True) if bool(wanted) == is_answered]
        for kind, is_answered in (("answered", True), ("impossible", False))
    }
    if all(by_kind.values()):
        scores |= {f"f1/{kind}": float(np.mean(values)) for kind, values in by_kind.items()}
    return scores


def _zip(true: Sequence[Sequence[str]], predicted: Sequence[str]) -> Iterable[tuple[Sequence[str], str]]:
    return zip(true, predicted, strict=True)


def _words(answer: str) -> list[str]:
    """Without case, punctuation and articles."""
    kept = "".join(character for character in answer.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def _word_f1(true: str, predicted: str) -> float:
    true_words, predicted_words = _words(true), _words(predicted)
    if not true_words or not predicted_words:
        return float(true_words == predicted_words)
    num_same = (Counter(true_words) & Counter(predicted_words)).total()
    return _f1(num_same, len(predicted_words), len(true_words))[2]
