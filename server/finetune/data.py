"""Reads labelled examples from JSONL, CSV and CoNLL files and splits them.

Knows nothing of models or tokenizers. A mistake in a file is a `ConfigurationError` that names the line.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from server.errors import ConfigurationError

csv.field_size_limit(16 * 1024 * 1024)


@dataclass(frozen=True)
class TextExample:
    """A text and its labels: exactly one, unless the data is multi-label."""

    text: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class TagExample:
    """A sentence as words, with one tag each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)


@dataclass(frozen=True)
class Texts:
    """A classification file."""

    examples: list[TextExample]
    is_multi_label: bool


def _fail(path: Path, line: int, problem: str) -> NoReturn:
    raise ConfigurationError(f"{path}, line {line}: {problem}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends."""
    if not path.is_file():
        raise ConfigurationError(f"There is no data file {path}. Give --data or --eval-data an existing file.")
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                _fail(path, number, "it is not UTF-8. Save the file as UTF-8.")


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            _fail(path, number, "a string holds half of a surrogate pair, which is no character.")
        except json.JSONDecodeError as error:
            _fail(path, number, f"it is not JSON ({error.msg} at column {error.colno}). Write one object a line.")
        if not isinstance(row, dict):
            _fail(path, number, f"it is a JSON {type(row).__name__}. Write one object a line.")
        yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows by the header's names; a row's number is that of its last line."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader((line + "\n" for _, line in _lines(path)), delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise ConfigurationError(f"{path} is empty. Its first line must name the columns, such as text,label.")
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                _fail(path, reader.line_num, f"{len(row)} columns where the first line names {len(header)}.")
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        _fail(path, reader.line_num, f"it is not CSV ({error}).")


def _column(path: Path, number: int, row: dict[str, Any], name: str, option: str) -> Any:
    if name not in row:
        _fail(path, number, f"there is no column {name!r}, only {', '.join(map(repr, row))}. Name it with {option}.")
    return row[name]


def _label(path: Path, number: int, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        _fail(path, number, f"the label is {json.dumps(value)}. It must be a word or a whole number.")
    label = str(value).strip()
    if not label:
        _fail(path, number, "the label is empty.")
    return label


def read_texts(path: Path, text_column: str = "text", label_column: str = "label") -> Texts:
    """A classification file: CSV, TSV or JSONL. Multi-label if the JSONL labels are lists."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".jsonl", ".json"):
        raise ConfigurationError(f"{path}: classification data is a .csv, .tsv or .jsonl file.")
    examples: list[TextExample] = []
    is_multi_label: bool | None = None
    for number, row in _csv_rows(path) if suffix in (".csv", ".tsv") else _json_rows(path):
        text = _column(path, number, row, text_column, "--text-column")
        if not isinstance(text, str) or not text.strip():
            _fail(path, number, "the text is empty." if text in ("", None) else "the text is not a string with words.")
        value = _column(path, number, row, label_column, "--label-column")
        if is_multi_label is None:
            is_multi_label = isinstance(value, list)
        if isinstance(value, list) != is_multi_label:
            _fail(path, number, "the label is a list in some lines and not in others. Make all of them lists.")
        values = value if isinstance(value, list) else [value]
        examples.append(TextExample(text, tuple(dict.fromkeys(_label(path, number, item) for item in values))))
    if not examples:
        raise ConfigurationError(f"{path} holds no examples.")
    return Texts(examples, bool(is_multi_label))


def read_tags(path: Path, tokens_column: str = "tokens", tags_column: str = "ner_tags") -> list[TagExample]:
    """A tagging file: JSONL with two lists a line, or CoNLL columns with the word first and the tag last."""
    if path.suffix.lower() in (".jsonl", ".json"):
        examples = list(_json_sentences(path, tokens_column, tags_column))
    else:
        examples = list(_conll_sentences(path))
    if not examples:
        raise ConfigurationError(f"{path} holds no sentences.")
    return examples


def _json_sentences(path: Path, tokens_column: str, tags_column: str) -> Iterator[TagExample]:
    for number, row in _json_rows(path):
        words = _column(path, number, row, tokens_column, "--text-column")
        tags = _column(path, number, row, tags_column, "--label-column")
        for name, values in ((tokens_column, words), (tags_column, tags)):
            if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
                _fail(path, number, f"{name} is not a list of words.")
        if len(words) != len(tags):
            _fail(path, number, f"{len(words)} {tokens_column} but {len(tags)} {tags_column}.")
        for tag in tags:
            _check_tag(path, number, tag)
        if words:
            yield TagExample(tuple(words), tuple(tags))


def _conll_sentences(path: Path) -> Iterator[TagExample]:
    words: list[str] = []
    tags: list[str] = []
    for number, line in _lines(path):
        # Not at every space of Unicode: some corpora have words with a no-break space inside.
        columns = re.split("[ \t]+", line.strip(" \t"))
        if columns[0] in ("", "-DOCSTART-"):
            if words:
                yield TagExample(tuple(words), tuple(tags))
            words, tags = [], []
            continue
        if len(columns) == 1:
            _fail(path, number, "one column. Write a word, then its tag, with a space or a tab between.")
        _check_tag(path, number, columns[-1])
        words.append(columns[0])
        tags.append(columns[-1])
    if words:
        yield TagExample(tuple(words), tuple(tags))


def _check_tag(path: Path, number: int, tag: str) -> None:
    prefix, separator, kind = tag.partition("-")
    if tag != "O" and not (separator and kind and prefix in tuple("BIESLU")):
        _fail(path, number, f"{tag!r} is not a tag. Tags are O, or B- or I- and a type, such as B-PER.")


@dataclass(frozen=True)
class Split:
    """Three parts of the data. No text is in two of them."""

    train: list[Any]
    validation: list[Any]
    test: list[Any]


def split(examples: Sequence[Any], *, validation_share: float, test_share: float, seed: int) -> Split:
    """Cut by ``seed`` so that each part has about the same mix of labels.

    Examples with the same text stay together. ``test_share`` 0 leaves that part empty.
    """
    by_text: dict[str, list[Any]] = defaultdict(list)
    for example in examples:
        by_text[example.text].append(example)
    strata: dict[tuple[str, ...], list[list[Any]]] = defaultdict(list)
    for group in by_text.values():
        strata[_stratum(group[0])].append(group)

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


def _stratum(example: TextExample | TagExample) -> tuple[str, ...]:
    if isinstance(example, TextExample):
        return example.labels
    return tuple(sorted({tag.partition("-")[2] for tag in example.tags}))
