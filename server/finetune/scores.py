"""Held-out scores: F1 of labels, and F1 of whole entity spans as conlleval and seqeval count them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Span = tuple[str, int, int]
"""Type, first word, last word."""


def entity_spans(tags: Sequence[str]) -> list[Span]:
    """The entities of one sentence's tags, in any of the schemes IOB1, BIO, IOE and BIOES.

    Lenient, as conlleval: an I- without its B- begins an entity, and a change of type ends one.

    >>> entity_spans(["B-PER", "I-PER", "O", "B-LOC"])
    [('PER', 0, 1), ('LOC', 3, 3)]
    """
    spans: list[Span] = []
    start: int | None = None
    previous_prefix, previous_kind = "O", ""
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        if start is not None and _ends(previous_prefix, prefix, previous_kind != kind):
            spans.append((previous_kind, start, index - 1))
            start = None
        if start is None and prefix != "O":
            start = index
        previous_prefix, previous_kind = prefix, kind
    return spans


def _ends(previous: str, current: str, kind_changes: bool) -> bool:
    """Whether the entity that ``previous`` belongs to is over before ``current``."""
    return previous in "ESLU" or current in "OBSU" or kind_changes


def _f1(num_correct: int, num_predicted: int, num_true: int) -> tuple[float, float, float]:
    """Precision, recall and F1; 0 where nothing can be divided."""
    precision = num_correct / num_predicted if num_predicted else 0.0
    recall = num_correct / num_true if num_true else 0.0
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0.0


def span_scores(true: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]) -> dict[str, float]:
    """Micro precision, recall and F1 of spans; ``f1/TYPE`` of each type; word accuracy.

    A predicted span counts only if its type, first and last word are all right.
    """
    num_correct: Counter[str] = Counter()
    num_predicted: Counter[str] = Counter()
    num_true: Counter[str] = Counter()
    num_words = num_right_words = 0
    for true_tags, predicted_tags in zip(true, predicted, strict=True):
        true_spans, predicted_spans = set(entity_spans(true_tags)), set(entity_spans(predicted_tags))
        num_true.update(kind for kind, *_ in true_spans)
        num_predicted.update(kind for kind, *_ in predicted_spans)
        num_correct.update(kind for kind, *_ in true_spans & predicted_spans)
        num_words += len(true_tags)
        num_right_words += sum(a == b for a, b in zip(true_tags, predicted_tags, strict=True))
    precision, recall, f1 = _f1(num_correct.total(), num_predicted.total(), num_true.total())
    kinds = sorted(num_true.keys() | num_predicted.keys())
    by_kind = {f"f1/{kind}": _f1(num_correct[kind], num_predicted[kind], num_true[kind])[2] for kind in kinds}
    macro_f1 = sum(by_kind.values()) / len(by_kind) if by_kind else 0.0
    accuracy = num_right_words / num_words if num_words else 0.0
    return {"f1": f1, "precision": precision, "recall": recall, "macro_f1": macro_f1, "accuracy": accuracy, **by_kind}


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
