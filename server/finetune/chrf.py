"""chrF: an F-score of the character n-grams that predicted and true texts share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

MAX_ORDER = 6
"""Characters of the longest n-grams."""
RECALL_WEIGHT = 4
"""Weight of recall relative to precision: the square of chrF's beta, which is 2."""


def chrf(true: Sequence[str], predicted: Sequence[str]) -> float:
    """The score of all texts together, from 0 to 100: sacreBLEU's corpus score with one reference, not rounded.

    >>> chrf(["the river"], ["the river"])
    100.0
    """
    precisions, recalls = [], []
    for order in range(1, MAX_ORDER + 1):
        num_predicted = num_true = num_same = 0
        for wanted, found in zip(true, predicted, strict=True):
            of_true, of_predicted = _ngrams(wanted, order), _ngrams(found, order)
            num_true += of_true.total()
            # sacreBLEU ignores n-grams of an output whose reference has none of that order.
            num_predicted += of_predicted.total() if of_true else 0
            num_same += (of_true & of_predicted).total()
        if num_predicted and num_true:
            precisions.append(num_same / num_predicted)
            recalls.append(num_same / num_true)
    if not any(precisions):
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 100 * (1 + RECALL_WEIGHT) * precision * recall / (RECALL_WEIGHT * precision + recall)


def _ngrams(text: str, order: int) -> Counter[str]:
    """Spaces are ignored."""
    plain = "".join(text.split())
    return Counter(plain[start : start + order] for start in range(len(plain) - order + 1))
