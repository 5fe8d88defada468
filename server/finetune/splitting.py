"""Cuts examples into a part to train on, one to choose by and one that is held out."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from server.errors import ConfigurationError
from server.finetune.data import TagExample, TextExample
from server.finetune.questions import QuestionExample
from server.finetune.rewrites import RewriteExample
from server.text.tag_schemes import TagScheme, scheme_of


@dataclass(frozen=True)
class Split:
    """Three parts of the data. No text is in two of them."""

    train: list[Any]
    validation: list[Any]
    test: list[Any]


def split(examples: Sequence[Any], *, validation_share: float, test_share: float, seed: int) -> Split:
    """Cut by ``seed`` so that each part has about the same mix of labels.

    Examples with the same text, or pair of texts, stay together, and so do all questions about one text.
    ``test_share`` 0 leaves that part empty.
    """
    by_text: dict[tuple[str, ...], list[Any]] = defaultdict(list)
    for example in examples:
        by_text[_key(example)].append(example)
    scheme = scheme_of(tag for example in examples if isinstance(example, TagExample) for tag in example.tags)
    strata: dict[tuple[str, ...], list[list[Any]]] = defaultdict(list)
    for group in by_text.values():
        strata[_stratum(group[0], scheme)].append(group)

    rng = random.Random(seed)
    # Each stratum is spread evenly over (0, 1): any run of the sorted whole has the strata in proportion,
    # and a label that occurs once lies in the middle, which is training data.
    places: list[tuple[float, float, list[Any]]] = []
    for _, groups in sorted(strata.items()):
        rng.shuffle(groups)
        places += [((index + 0.5) / len(groups), rng.random(), group) for index, group in enumerate(groups)]
    places.sort(key=lambda place: place[:2])

    num_test = max(1, round(len(places) * test_share)) if test_share else 0
    num_validation = max(1, round(len(places) * validation_share))
    if len(places) < num_test + num_validation + 2:
        raise ConfigurationError(f"{len(places)} different texts are too few to train on and hold some out.")
    cuts = [0, num_test, num_test + num_validation, len(places)]
    test, validation, train = (
        [example for *_, group in places[start:stop] for example in group] for start, stop in pairwise(cuts)
    )
    return Split(train=train, validation=validation, test=test)


def without_texts_of(examples: Sequence[Any], held_out: Sequence[Any]) -> list[Any]:
    """The examples whose text, or pair of texts, no example of ``held_out`` has."""
    keys = {_key(example) for example in held_out}
    return [example for example in examples if _key(example) not in keys]


def _key(example: TextExample | TagExample | QuestionExample | RewriteExample) -> tuple[str, ...]:
    if isinstance(example, RewriteExample):
        return (example.source,)
    if isinstance(example, QuestionExample):
        return (example.context,)
    pair = example.pair if isinstance(example, TextExample) else None
    return (example.text,) if pair is None else (example.text, pair)


def _stratum(
    example: TextExample | TagExample | QuestionExample | RewriteExample, scheme: TagScheme
) -> tuple[str, ...]:
    if isinstance(example, RewriteExample):
        return ()
    if isinstance(example, QuestionExample):
        return ("answered",) if example.answers else ("impossible",)
    if isinstance(example, TextExample):
        return example.labels
    return tuple(sorted({scheme.tags[tag].type for tag in example.tags}))
