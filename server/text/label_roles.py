"""Which of a classifier's labels answers a question that is not about labels; judged by names and number alone."""

from __future__ import annotations

from collections.abc import Sequence


def entailment_place(labels: Sequence[str]) -> int | None:
    """Of a natural language inference model: the label that says that the second text follows from the first.

    >>> entailment_place(["contradiction", "neutral", "ENTAILMENT"]), entailment_place(["good", "bad"])
    (2, None)
    """
    if len(labels) < 2:
        return None
    return next((place for place, label in enumerate(labels) if label.lower().startswith("entail")), None)


def contradiction_place(labels: Sequence[str]) -> int:
    """The label against which entailment is weighed: the first, or the last where entailment is the first.

    >>> contradiction_place(["entailment", "neutral", "contradiction"])
    2
    """
    return len(labels) - 1 if entailment_place(labels) == 0 else 0


def relevance_place(labels: Sequence[str]) -> int | None:
    """The label that says that a text answers a query: the only one, entailment, or the second of two.

    >>> relevance_place(["LABEL_0"]), relevance_place(["no", "yes"]), relevance_place(["a", "b", "c"])
    (0, 1, None)
    """
    if len(labels) > 2:
        return None
    entailment = entailment_place(labels)
    return len(labels) - 1 if entailment is None else entailment


def entailment_label(labels: Sequence[str]) -> str | None:
    """The name at `entailment_place`."""
    return _name(labels, entailment_place(labels))


def relevance_label(labels: Sequence[str]) -> str | None:
    """The name at `relevance_place`."""
    return _name(labels, relevance_place(labels))


def _name(labels: Sequence[str], place: int | None) -> str | None:
    return None if place is None else labels[place]
