"""What differs between classifying and tagging: data, model class, features, scores.

Dimension key
    N  examples
    L  labels
    T  tokens
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import transformers
from numpy.typing import NDArray

from server.config import ModelConfig
from server.errors import ConfigurationError
from server.finetune.data import TagExample, TextColumns, TextExample, label_names, read_tags, read_texts
from server.finetune.options import Options
from server.finetune.parts import Part, text_encodings
from server.finetune.scores import Span, label_scores, span_scores
from server.models.lengths import longest_input
from server.tasks import CLASSIFY, NER, Task
from server.text.entities import TaggedText, softmax
from server.text.joined import joined_entities
from server.text.tag_schemes import OUTSIDE, scheme_of, spans
from server.text.windows import content_range

if TYPE_CHECKING:
    from server.finetune.base import Base

IGNORED = -100
"""The label of a token that is neither trained nor scored."""


class TrainedTask(ABC):
    """One training run's task; knows its labels once the data has been read."""

    task: ClassVar[Task]
    best_score: str
    """The validation score that chooses the best epoch."""
    pipeline_tag: str
    metrics: tuple[str, ...] = ("f1", "accuracy")
    """Names of the scores for the model card."""
    options: Options
    labels: list[str]
    problem_type: str | None = None
    greater_is_better = True
    """Whether a higher ``best_score`` is better."""
    shown: tuple[str, ...] = ()
    """Held-out scores to print at the end; if empty, ``best_score``."""
    scores_epochs = True
    """Whether `scores` are computed after each epoch. The validation loss always is."""
    trainer_class: Any = transformers.Trainer
    arguments_class: Any = transformers.TrainingArguments
    more_arguments: Mapping[str, Any] = MappingProxyType({})
    """Further arguments for ``arguments_class``."""
    default_max_length = 256
    length_note = "Texts were cut at {max_length} tokens."

    @abstractmethod
    def read(self, path: Path) -> tuple[list[Any], list[str]]:
        """The examples, and what there is to say of the file."""

    @abstractmethod
    def set_labels(self, examples: Iterable[Any]) -> None: ...

    def config_fields(self) -> dict[str, Any]:
        """Fields of the base's config that the task decides."""
        labels = dict(enumerate(self.labels))
        label_ids = {label: index for index, label in labels.items()}
        return {"id2label": labels, "label2id": label_ids, "problem_type": self.problem_type}

    def prepare(self, base: Base) -> None:  # noqa: B027
        """Called once, when the base has been loaded."""

    def longest_input(self, model: Any, tokenizer: Any) -> int:
        """Maximum tokens of a text that the server accepts."""
        base = ModelConfig(name="base", path=self.options.model)
        return longest_input(base, model, tokenizer, self.task.name, None)

    def facts(self) -> dict[str, int]:
        """Further numbers for metrics.json."""
        return {}

    @property
    def route(self) -> str:
        """The path that the model card shows."""
        return self.task.route

    def body(self) -> dict[str, Any]:
        """A request to the task's route."""
        return {"inputs": "..."}

    def encodings(self, examples: Sequence[Any], tokenizer: Any, max_length: int, part: str) -> list[tuple[Any, Any]]:
        """Each example with what its text became: a ``tokenizers.Encoding``, or several windows of it."""
        return text_encodings(examples, tokenizer, max_length, part)

    def labelled(self, example: Any, encoding: Any) -> dict[str, Any]:
        """What the model is to say of an encoding, by the names of its arguments."""
        return {"labels": self.targets(example, encoding)}

    def targets(self, example: Any, encoding: Any) -> Any:
        """The ``labels`` of one encoding."""
        raise NotImplementedError

    @abstractmethod
    def collator(self, tokenizer: Any) -> Any: ...

    @abstractmethod
    def scores(self, part: Part, logits: NDArray[np.float32], label_ids: NDArray[Any]) -> dict[str, float]:
        """Of the rows of ``part``."""

    def final_scores(self, trainer: Any, part: Part) -> dict[str, float]:
        """Scores of the best weights, and the Trainer's timings."""
        found: dict[str, float] = trainer.predict(part.features).metrics
        return found

    def save(self, folder: Path, tokenizer: Any) -> None:
        """Write the files that the server needs beside weights and config."""
        tokenizer.save_pretrained(folder)

    @cached_property
    def label_ids(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.labels)}

    def _known_ids(self, labels: Iterable[str]) -> list[int]:
        if unknown := sorted(set(labels) - self.label_ids.keys()):
            raise ConfigurationError(f"--eval-data has labels that --data does not have: {', '.join(unknown)}.")
        return [self.label_ids[label] for label in labels]


class Classify(TrainedTask):
    """One label a text, or any number of labels."""

    task = CLASSIFY
    best_score = "macro_f1"
    pipeline_tag = "text-classification"

    def __init__(self, options: Options) -> None:
        self.options = options
        self.columns = TextColumns(
            options.text_column or "text", options.label_column or "label", options.text_pair_column
        )
        self.names = label_names(options.label_names)
        self.is_multi_label: bool | None = None
        self.has_pairs: bool | None = None

    def read(self, path: Path) -> tuple[list[TextExample], list[str]]:
        texts = read_texts(path, self.columns, self.names)
        has_pairs = texts.examples[0].pair is not None
        if self.has_pairs not in (None, has_pairs):
            raise ConfigurationError(f"{path}: one of --data and --eval-data has pairs of texts and the other has not.")
        self.has_pairs = has_pairs
        if self.is_multi_label is None:
            self.is_multi_label = texts.is_multi_label
        elif self.is_multi_label != texts.is_multi_label:
            raise ConfigurationError(f"{path}: labels are lists in one of --data and --eval-data and not in the other.")
        return texts.examples, texts.notes

    def set_labels(self, examples: Iterable[TextExample]) -> None:
        self.labels = sorted({label for example in examples for label in example.labels})
        if len(self.labels) < (1 if self.is_multi_label else 2):
            found = f"every example has the label {self.labels[0]!r}" if self.labels else "no example has a label"
            raise ConfigurationError(f"A classifier needs at least two labels in --data: {found}.")
        self.problem_type = "multi_label_classification" if self.is_multi_label else "single_label_classification"

    def targets(self, example: TextExample, encoding: Any) -> int | list[float]:  # noqa: ARG002
        ids = self._known_ids(example.labels)
        if not self.is_multi_label:
            return ids[0]
        return [float(index in ids) for index in range(len(self.labels))]

    def collator(self, tokenizer: Any) -> Any:
        return transformers.DataCollatorWithPadding(tokenizer)

    def scores(self, part: Part, logits: NDArray[np.float32], label_ids: NDArray[Any]) -> dict[str, float]:  # noqa: ARG002
        if self.is_multi_label:
            return label_scores(label_ids > 0.5, logits > 0, self.labels)
        columns = np.arange(len(self.labels))
        predicted = logits.argmax(axis=-1)
        return label_scores(label_ids[:, None] == columns, predicted[:, None] == columns, self.labels)


class Tag(TrainedTask):
    """One tag a word. The words are joined to a text and tokenised as the server tokenises one.

    What is scored are the entities that the server would answer with.
    """

    task = NER
    best_score = "f1"
    pipeline_tag = "token-classification"

    def __init__(self, options: Options) -> None:
        self.options = options
        self.columns = (options.text_column or "tokens", options.label_column or "ner_tags")
        self.names = label_names(options.label_names)

    def read(self, path: Path) -> tuple[list[TagExample], list[str]]:
        sentences = read_tags(path, *self.columns, self.names)
        return sentences.examples, sentences.notes

    def set_labels(self, examples: Iterable[TagExample]) -> None:
        tags = {tag for example in examples for tag in example.tags}
        if tags <= {OUTSIDE}:
            raise ConfigurationError("A tagger needs at least one entity in --data; every tag is O.")
        labels = scheme_of(tags | {OUTSIDE}).complete()
        self.scheme = scheme_of(labels)
        self.labels = [OUTSIDE, *sorted(labels - {OUTSIDE}, key=lambda label: (self.scheme.tags[label].type, label))]

    def targets(self, example: TagExample, encoding: Any) -> list[int]:
        return token_labels(example, self._known_ids(example.tags), encoding.offsets, encoding.special_tokens_mask)

    def collator(self, tokenizer: Any) -> Any:
        return transformers.DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED)

    def scores(self, part: Part, logits: NDArray[np.float32], label_ids: NDArray[Any]) -> dict[str, float]:
        true, predicted = [], []
        for example, encoding, row_TL in zip(part.examples, part.encodings, logits, strict=True):
            content = content_range(encoding.special_tokens_mask)
            offsets = encoding.offsets[content.start : content.stop]
            predicted.append(self._found(example.text, encoding, content, row_TL))
            true.append(self._told(example, max((end for _, end in offsets), default=0)))
        is_scored = label_ids != IGNORED
        accuracy = float((logits.argmax(axis=-1) == label_ids)[is_scored].mean()) if is_scored.any() else 0.0
        return {**span_scores(true, predicted), "accuracy": accuracy}

    def _found(self, text: str, encoding: Any, content: range, row_TL: NDArray[np.float32]) -> set[Span]:
        kept = slice(content.start, content.stop)
        tagged = TaggedText(
            text=text,
            token_ids=encoding.ids[kept],
            tokens=encoding.tokens[kept],
            offsets=encoding.offsets[kept],
            word_ids=encoding.word_ids[kept],
            positions=content,
            labels=self.labels,
            probabilities_TL=softmax(row_TL[kept]),
        )
        return {(e.label, e.start, e.end) for e in joined_entities(tagged) if e.label != OUTSIDE}

    def _told(self, example: TagExample, end: int) -> set[Span]:
        """The data's entities, as far as the text was not cut."""
        words, starts = example.words, example.starts
        found = spans([self.scheme.tags[tag] for tag in example.tags])
        placed = {(kind, starts[first], starts[last] + len(words[last])) for kind, first, last in found}
        return {span for span in placed if span[1] < end}


def token_labels(
    example: TagExample, tag_ids: Sequence[int], offsets: Sequence[tuple[int, int]], is_special: Sequence[int]
) -> list[int]:
    """One label per token of the example's text: a word's on its first piece, `IGNORED` elsewhere.

    ``offsets`` are character offsets into the text; a piece may begin with the space before its word, and hold several
    words of a script without spaces: it then has the label of the first.

    >>> example = TagExample(("Ann", "sings"), ("B-PER", "O"))
    >>> token_labels(example, [1, 0], [(0, 0), (0, 2), (2, 3), (3, 9), (0, 0)], [1, 0, 0, 0, 1])
    [-100, 1, -100, 0, -100]
    """
    text, starts = example.text, example.starts
    labels: list[int] = []
    labelled = -1
    for (start, end), special in zip(offsets, is_special, strict=True):
        while start < end and text[start].isspace():
            start += 1
        word = max(labelled + 1, bisect_right(starts, start) - 1)
        is_first_piece = not special and end > start and word < len(starts) and starts[word] < end
        labels.append(tag_ids[word] if is_first_piece else IGNORED)
        if is_first_piece:
            labelled = bisect_right(starts, end - 1) - 1
    return labels
