"""Reads labelled examples from JSONL, CSV and CoNLL files.

Knows nothing of models or tokenizers. A mistake in a file is a `ConfigurationError` that names the line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from server.errors import ConfigurationError
from server.finetune.files import Row, Table, column_of, column_rows, fail, json_rows, lines, text_of
from server.text.scripts import join_words
from server.text.tag_schemes import OUTSIDE, scheme_of

NAMES_FIELD = "label_names"
"""A first JSON line with this alone names the labels of a file whose labels are numbers."""


@dataclass(frozen=True)
class TextExample:
    """A text, or a pair of them, and its labels: exactly one, unless the data is multi-label."""

    text: str
    labels: tuple[str, ...]
    pair: str | None = None


@dataclass(frozen=True)
class TagExample:
    """A sentence as words, with one tag each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def text(self) -> str:
        return self._joined[0]

    @property
    def starts(self) -> list[int]:
        """Where in the text each word begins."""
        return self._joined[1]

    @cached_property
    def _joined(self) -> tuple[str, list[int]]:
        return join_words(self.words)


@dataclass(frozen=True)
class Texts:
    """A classification file."""

    examples: list[TextExample]
    is_multi_label: bool
    notes: list[str] = field(default_factory=list)
    """What was done with the file that is not plain from its examples."""


@dataclass(frozen=True)
class Sentences:
    """A tagging file."""

    examples: list[TagExample]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TextColumns:
    """Where a classification file has what."""

    text: str = "text"
    label: str = "label"
    pair: str | None = None
    """None for ``text_pair``, if there is such a column."""


def label_names(option: str | None) -> list[str] | None:
    """Names of labels that are numbers: separated by commas, or in a file, one a line.

    >>> label_names("O, B-PER,I-PER")
    ['O', 'B-PER', 'I-PER']
    """
    if option is None:
        return None
    # Not Path.is_file: it raises for a list that is too long for a file name.
    is_file = os.path.isfile(option)  # noqa: PTH113
    found = [line for _, line in lines(Path(option))] if is_file else option.split(",")
    names = [name.strip() for name in found if name.strip()]
    if not _are_names(names):
        raise ConfigurationError(f"--label-names has {', '.join(names)}: it must be at least two different names.")
    return names


def _are_names(names: Sequence[Any]) -> bool:
    return all(isinstance(name, str) and name for name in names) and len(set(names)) >= max(len(names), 2)


class Labels:
    """Reads labels: words, or numbers that a list of names has words for."""

    def __init__(self, names: Sequence[str] | None) -> None:
        self.names = names
        self.num_stripped = 0

    def read(self, path: Path, number: int, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            fail(path, number, f"the label is {json.dumps(value)}. It must be a word or an integer.")
        label = str(value).strip()
        if not label:
            fail(path, number, "the label is empty.")
        self.num_stripped += label != str(value)
        return label if self.names is None else self._named(path, number, label, self.names)

    def _named(self, path: Path, number: int, label: str, names: Sequence[str]) -> str:
        if not label.isdecimal():
            if label in names:
                return label
            fail(path, number, f"the label {label!r} is not one of the names: {', '.join(names)}.")
        if int(label) >= len(names):
            fail(path, number, f"the label is {label}, and {len(names)} labels have names, from 0 to {len(names) - 1}.")
        return names[int(label)]

    def notes(self) -> list[str]:
        return [f"{self.num_stripped} labels had spaces around them"] if self.num_stripped else []


def read_texts(path: Path, columns: TextColumns | None = None, names: Sequence[str] | None = None) -> Texts:
    """A classification file: CSV, TSV or JSONL. Multi-label if the JSONL labels are lists."""
    columns = columns or TextColumns()
    if path.suffix.lower() not in (".csv", ".tsv", ".jsonl", ".json"):
        raise ConfigurationError(f"{path}: classification data is a .csv, .tsv or .jsonl file.")
    table, labels = Table(path), Labels(names)
    examples: list[TextExample] = []
    is_multi_label: bool | None = None
    pair_column: str | None = None
    unused: dict[str, None] = {}
    needed = [name for name in (columns.text, columns.label, columns.pair) if name]
    for number, row in _named_rows(path, table.rows(needed), labels):
        if not examples:
            pair_column = columns.pair or ("text_pair" if "text_pair" in row else None)
        value = column_of(path, number, row, columns.label, "--label-column")
        text = text_of(path, number, column_of(path, number, row, columns.text, "--text-column"), "text")
        pair = _pair(path, number, row, pair_column)
        if is_multi_label is None:
            is_multi_label = isinstance(value, list)
        if isinstance(value, list) != is_multi_label:
            fail(path, number, "the label is a list in some lines and not in others. Make all of them lists.")
        values = value if isinstance(value, list) else [value]
        found = tuple(dict.fromkeys(labels.read(path, number, item) for item in values))
        examples.append(TextExample(text, found, pair))
        unused |= dict.fromkeys(row.keys() - {columns.text, columns.label, pair_column})
    if not examples:
        raise ConfigurationError(f"{path} holds no examples.")
    notes = [*table.notes, *labels.notes()]
    if pair_column:
        notes.append(f"pairs of {columns.text} and {pair_column}")
    if unused:
        notes.append(f"columns not used: {', '.join(sorted(unused))}")
    return Texts(examples, bool(is_multi_label), notes)


def _named_rows(path: Path, rows: Iterator[tuple[int, Row]], labels: Labels) -> Iterator[tuple[int, Row]]:
    """The rows but the first one, where it names the labels."""
    for place, (number, row) in enumerate(rows):
        if place == 0 and row.keys() == {NAMES_FIELD} and isinstance(row[NAMES_FIELD], list):
            names = [name.strip() if isinstance(name, str) else name for name in row[NAMES_FIELD]]
            if not _are_names(names):
                fail(path, number, f"{NAMES_FIELD} must be at least two different names.")
            if labels.names not in (None, names):
                fail(path, number, f"{NAMES_FIELD} and --label-names differ. Give one of them.")
            labels.names = names
        else:
            yield number, row


def _pair(path: Path, number: int, row: Row, column: str | None) -> str | None:
    if column is None:
        if "text_pair" in row:
            fail(path, number, "there is a text_pair, and the first line has none. Give every line one.")
        return None
    return text_of(path, number, column_of(path, number, row, column, "--text-pair-column"), column)


def read_tags(
    path: Path, tokens_column: str = "tokens", tags_column: str = "ner_tags", names: Sequence[str] | None = None
) -> Sentences:
    """A tagging file: JSONL with two lists a line, or CoNLL columns with the word first and the tag last.

    Whatever the file writes for a word outside of all entities becomes ``O``.
    """
    labels = Labels(names)
    if path.suffix.lower() in (".jsonl", ".json"):
        numbered = list(_json_sentences(path, tokens_column, tags_column, labels))
    else:
        numbered = list(_conll_sentences(path, labels))
        _refuse_numbers(path, numbered)
    if not numbered:
        raise ConfigurationError(f"{path} holds no sentences.")
    first_lines: dict[str, int] = {}
    for example, line_numbers in numbered:
        for tag, number in zip(example.tags, line_numbers, strict=True):
            first_lines.setdefault(tag, number)
    outside = _checked_outside(path, first_lines, labels)
    examples = [example for example, _ in numbered]
    notes = labels.notes()
    if outside not in (None, OUTSIDE):
        notes.append(f"{outside!r} is read as O")
        examples = [
            TagExample(example.words, tuple(OUTSIDE if tag == outside else tag for tag in example.tags))
            for example in examples
        ]
    if num_unspaced := sum(example.text != " ".join(example.words) for example in examples):
        notes.append(f"{num_unspaced} sentences joined without spaces, as their script is written")
    return Sentences(examples, notes)


def _checked_outside(path: Path, first_lines: Mapping[str, int], labels: Labels) -> str | None:
    """The tag of words that are in no entity. Refuses tags that do not fit the others."""
    if labels.names is None and len(first_lines) > 1 and all(tag.isdecimal() for tag in first_lines):
        raise ConfigurationError(
            f"{path}: the tags are numbers. Name them in order with --label-names, such as O,B-PER,I-PER."
        )
    for tag, number in first_lines.items():
        if tag.startswith("-"):
            fail(path, number, f"{tag!r} is not a tag. Tags are O, and types such as PER or B-PER.")
    scheme = scheme_of(first_lines)
    plain = [tag for tag, meaning in scheme.tags.items() if meaning.place != "outside" and meaning.type == tag]
    if scheme.pattern is not None and plain:
        others = ", ".join(tag for tag in first_lines if tag not in plain)
        fail(path, first_lines[plain[0]], f"{plain[0]!r} is not a tag like the others ({others}).")
    return scheme.outside


def _refuse_numbers(path: Path, numbered: Sequence[tuple[TagExample, list[int]]]) -> None:
    """Some corpora number the words of each sentence in a column before them."""
    counts = [tuple(map(str, range(1, len(example.words) + 1))) for example, _ in numbered]
    if any(len(count) > 1 for count in counts) and counts == [example.words for example, _ in numbered]:
        fail(path, numbered[0][1][0], "the first column numbers the words. Remove it, so that the word comes first.")


def _json_sentences(
    path: Path, tokens_column: str, tags_column: str, labels: Labels
) -> Iterator[tuple[TagExample, list[int]]]:
    for number, row in _named_rows(path, json_rows(path), labels):
        words = column_of(path, number, row, tokens_column, "--text-column")
        tags = column_of(path, number, row, tags_column, "--label-column")
        if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
            fail(path, number, f"{tokens_column} is not a list of words.")
        if not isinstance(tags, list):
            fail(path, number, f"{tags_column} is not a list of tags.")
        if len(words) != len(tags):
            fail(path, number, f"{len(words)} {tokens_column} but {len(tags)} {tags_column}.")
        if words:
            found = tuple(labels.read(path, number, tag) for tag in tags)
            yield TagExample(tuple(words), found), [number] * len(words)


def _conll_sentences(path: Path, labels: Labels) -> Iterator[tuple[TagExample, list[int]]]:
    words: list[str] = []
    tags: list[str] = []
    numbers: list[int] = []
    for number, columns in column_rows(path):
        if not columns:
            if words:
                yield TagExample(tuple(words), tuple(tags)), numbers
            words, tags, numbers = [], [], []
            continue
        words.append(columns[0])
        tags.append(labels.read(path, number, columns[-1]))
        numbers.append(number)
    if words:
        yield TagExample(tuple(words), tuple(tags)), numbers
