"""What differs between classifying and tagging: data, model class, features, scores.

Dimension key
    N  examples
    L  labels
    T  tokens
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from numpy.typing import NDArray

from server.errors import ConfigurationError
from server.finetune.data import TagExample, TextExample, read_tags, read_texts
from server.finetune.options import Options
from server.finetune.scores import label_scores, span_scores

IGNORED = -100
"""The label of a token that is neither trained nor scored."""


class Task(ABC):
    """One kind of model; knows its labels once the data has been read."""

    best_score: str
    """The validation score that chooses the best epoch."""
    model_class: Any
    peft_type: str
    pipeline_tag: str
    labels: list[str]
    problem_type: str | None = None

    @abstractmethod
    def read(self, path: Path) -> list[Any]: ...

    @abstractmethod
    def set_labels(self, examples: Iterable[Any]) -> None: ...

    @abstractmethod
    def feature(self, example: Any, encoding: Any) -> dict[str, Any]:
        """Model inputs of one example, from its text's ``tokenizers.Encoding``."""

    @abstractmethod
    def collator(self, tokenizer: Any) -> Any: ...

    @abstractmethod
    def scores(self, logits: NDArray[np.float32], label_ids: NDArray[Any]) -> dict[str, float]: ...

    def _check_known(self, labels: Iterable[str], place: str) -> None:
        if unknown := sorted(set(labels) - set(self.labels)):
            raise ConfigurationError(f"{place} has labels that --data has not: {', '.join(unknown)}.")


class Classify(Task):
    """One label a text, or any number of labels."""

    best_score = "macro_f1"
    model_class = transformers.AutoModelForSequenceClassification
    peft_type = "SEQ_CLS"
    pipeline_tag = "text-classification"

    def __init__(self, options: Options) -> None:
        self.columns = (options.text_column or "text", options.label_column or "label")
        self.is_multi_label: bool | None = None

    def read(self, path: Path) -> list[TextExample]:
        texts = read_texts(path, *self.columns)
        if self.is_multi_label is None:
            self.is_multi_label = texts.is_multi_label
        elif self.is_multi_label != texts.is_multi_label:
            raise ConfigurationError(f"{path}: labels are lists in one of --data and --eval-data and not in the other.")
        return texts.examples

    def set_labels(self, examples: Iterable[TextExample]) -> None:
        self.labels = sorted({label for example in examples for label in example.labels})
        if len(self.labels) < (1 if self.is_multi_label else 2):
            raise ConfigurationError("A classifier needs at least two labels in --data.")
        self.problem_type = "multi_label_classification" if self.is_multi_label else "single_label_classification"

    def feature(self, example: TextExample, encoding: Any) -> dict[str, Any]:
        self._check_known(example.labels, "--eval-data")
        inputs = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}
        if not self.is_multi_label:
            return {**inputs, "labels": self.labels.index(example.labels[0])}
        return {**inputs, "labels": [float(label in example.labels) for label in self.labels]}

    def collator(self, tokenizer: Any) -> Any:
        return transformers.DataCollatorWithPadding(tokenizer)

    def scores(self, logits: NDArray[np.float32], label_ids: NDArray[Any]) -> dict[str, float]:
        if self.is_multi_label:
            return label_scores(label_ids > 0.5, logits > 0, self.labels)
        one_hot = np.eye(len(self.labels), dtype=bool)
        return label_scores(one_hot[label_ids], one_hot[logits.argmax(axis=-1)], self.labels)


class Tag(Task):
    """One tag a word. The words are joined by spaces and tokenised as the server tokenises a text."""

    best_score = "f1"
    model_class = transformers.AutoModelForTokenClassification
    peft_type = "TOKEN_CLS"
    pipeline_tag = "token-classification"

    def __init__(self, options: Options) -> None:
        self.columns = (options.text_column or "tokens", options.label_column or "ner_tags")

    def read(self, path: Path) -> list[TagExample]:
        return read_tags(path, *self.columns)

    def set_labels(self, examples: Iterable[TagExample]) -> None:
        tags = {tag for example in examples for tag in example.tags} - {"O"}
        if not tags:
            raise ConfigurationError("A tagger needs at least one entity in --data; every tag is O.")
        # Both ends of every type, so that an entity longer than those in the data can be written.
        if all(tag[0] in "BI" for tag in tags):
            tags |= {f"{prefix}-{tag[2:]}" for tag in tags for prefix in "BI"}
        self.labels = ["O", *sorted(tags, key=lambda tag: (tag.partition("-")[2], tag))]

    def feature(self, example: TagExample, encoding: Any) -> dict[str, Any]:
        self._check_known(example.tags, "--eval-data")
        tag_ids = [self.labels.index(tag) for tag in example.tags]
        return {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "labels": token_labels(example.words, tag_ids, encoding.offsets, encoding.special_tokens_mask),
        }

    def collator(self, tokenizer: Any) -> Any:
        return transformers.DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED)

    def scores(self, logits: NDArray[np.float32], label_ids: NDArray[Any]) -> dict[str, float]:
        true, predicted = [], []
        for row_TL, row_T in zip(logits, label_ids, strict=True):
            is_scored = row_T != IGNORED
            true.append([self.labels[i] for i in row_T[is_scored]])
            predicted.append([self.labels[i] for i in row_TL.argmax(axis=-1)[is_scored]])
        return span_scores(true, predicted)


def token_labels(
    words: Sequence[str], tag_ids: Sequence[int], offsets: Sequence[tuple[int, int]], is_special: Sequence[int]
) -> list[int]:
    """One label per token of the words joined by spaces: the word's on its first piece, `IGNORED` elsewhere.

    ``offsets`` are character offsets into the joined text; a piece may begin with the space before its word.

    >>> token_labels(["Ann", "sings"], [1, 0], [(0, 0), (0, 2), (2, 3), (3, 9), (0, 0)], [1, 0, 0, 0, 1])
    [-100, 1, -100, 0, -100]
    """
    starts = list(accumulate((len(word) + 1 for word in words[:-1]), initial=0))
    labels: list[int] = []
    labelled = -1
    for (start, end), special in zip(offsets, is_special, strict=True):
        word = bisect_right(starts, end - 1) - 1
        is_first_piece = not special and end > start and word > labelled
        labels.append(tag_ids[word] if is_first_piece else IGNORED)
        labelled = word if is_first_piece else labelled
    return labels


TASKS: dict[str, type[Classify | Tag]] = {"classify": Classify, "ner": Tag}
