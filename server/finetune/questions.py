"""Reads questions with their answers: JSON nested as SQuAD's, or JSON lines with question, context and answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from server.errors import ConfigurationError
from server.finetune.files import fail, json_rows, lines


@dataclass(frozen=True)
class QuestionExample:
    """A question, the text that is asked about, and the answers as parts of that text."""

    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    """Text and the character that it starts at; none where the context has no answer."""


@dataclass(frozen=True)
class _Place:
    """Where an example stands in its file."""

    path: Path
    where: str

    def fail(self, problem: str) -> NoReturn:
        raise ConfigurationError(f"{self.path}, {self.where}: {problem}")


def read_questions(path: Path) -> tuple[list[QuestionExample], list[str]]:
    """The examples, and what there is to say of the file."""
    if path.suffix.lower() not in (".json", ".jsonl"):
        raise ConfigurationError(f"{path}: questions are a .json file like SQuAD's, or a .jsonl file.")
    nested = _nested(path)
    found = _flat_examples(path) if nested is None else _nested_examples(path, nested)
    examples = [_example(place, row) for place, row in found]
    if not examples:
        raise ConfigurationError(f"{path} holds no questions.")
    num_impossible = sum(not example.answers for example in examples)
    return examples, [f"{num_impossible} without an answer in their text"] if num_impossible else []


def _nested(path: Path) -> dict[str, Any] | None:
    """The whole file, where it is one object with ``data``, as SQuAD's are; None where it has an object a line."""
    numbered = list(lines(path))
    is_one_value = path.suffix.lower() == ".json" and not _begins_with_a_value(numbered)
    try:
        content = json.loads("\n".join(line for _, line in numbered))
    except json.JSONDecodeError as error:
        if is_one_value:
            fail(path, error.lineno, f"it is not JSON ({error.msg} at column {error.colno}).")
        return None
    except (ValueError, RecursionError) as error:
        if is_one_value:
            is_deep = isinstance(error, RecursionError)
            problem = "its JSON is nested too deeply" if is_deep else "a number has too many digits"
            raise ConfigurationError(f"{path}: {problem}.") from None
        return None
    if isinstance(content, dict) and "data" in content:
        return content
    if is_one_value:
        raise ConfigurationError(f"{path}: data is missing. Write an object like SQuAD's, or one object a line.")
    return None


def _begins_with_a_value(numbered: Sequence[tuple[int, str]]) -> bool:
    """Whether the first line with words is JSON by itself, as in JSON lines."""
    first = next((line for _, line in numbered if line.strip()), "null")
    try:
        json.loads(first)
    except (ValueError, RecursionError) as error:
        return not isinstance(error, json.JSONDecodeError)
    return True


def _flat_examples(path: Path) -> Iterator[tuple[_Place, dict[str, Any]]]:
    for number, row in json_rows(path):
        yield _Place(path, f"line {number}"), row


def _nested_examples(path: Path, content: dict[str, Any]) -> Iterator[tuple[_Place, dict[str, Any]]]:
    for article, entry in enumerate(_list(_Place(path, "the whole file"), content, "data"), start=1):
        of_article = _Place(path, f"article {article}")
        for number, paragraph in enumerate(_list(of_article, entry, "paragraphs"), start=1):
            of_paragraph = _Place(path, f"article {article}, paragraph {number}")
            context = _field(of_paragraph, paragraph, "context")
            for asked, row in enumerate(_list(of_paragraph, paragraph, "qas"), start=1):
                place = _Place(path, f"{of_paragraph.where}, question {asked}")
                if not isinstance(row, dict):
                    place.fail("it is not an object.")
                yield place, {**row, "context": context}


def _list(place: _Place, row: Any, name: str) -> list[Any]:
    value = _field(place, row, name)
    if not isinstance(value, list):
        place.fail(f"{name} must be a list.")
    return value


def _field(place: _Place, row: Any, name: str) -> Any:
    if not isinstance(row, dict) or name not in row:
        place.fail(f"{name} is missing.")
    return row[name]


def _example(place: _Place, row: dict[str, Any]) -> QuestionExample:
    question, context = (_field(place, row, name) for name in ("question", "context"))
    for name, value in (("question", question), ("context", context)):
        if not isinstance(value, str) or not value.strip():
            place.fail(f"the {name} is not a string with words.")
        if any("\ud800" <= character <= "\udfff" for character in value):
            place.fail(f"the {name} has half of a surrogate pair, which is not a character.")
    answers = tuple(dict.fromkeys(_answer(place, context, *pair) for pair in _pairs(place, row)))
    is_impossible = row.get("is_impossible")
    if is_impossible is not None and not isinstance(is_impossible, bool):
        place.fail(f"is_impossible is {is_impossible!r}. It must be true or false.")
    if is_impossible and answers:
        place.fail("is_impossible is true, and there are answers.")
    if is_impossible is False and not answers:
        place.fail("is_impossible is false, and there is no answer.")
    return QuestionExample(question, context, answers)


def _pairs(place: _Place, row: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Texts and starts: of a list of objects, or of an object of two lists."""
    answers = _field(place, row, "answers")
    if isinstance(answers, dict):
        texts, starts = (_list(place, answers, name) for name in ("text", "answer_start"))
        if len(texts) != len(starts):
            place.fail(f"answers has {len(texts)} texts and {len(starts)} starts.")
        yield from zip(texts, starts, strict=True)
        return
    for answer in _list(place, row, "answers"):
        yield _field(place, answer, "text"), _field(place, answer, "answer_start")


def _answer(place: _Place, context: str, text: Any, start: Any) -> tuple[str, int]:
    if not isinstance(text, str) or not text.strip():
        place.fail("an answer is not a string with words.")
    if isinstance(start, bool) or not isinstance(start, int):
        place.fail(f"answer_start is {start!r}. It must be an integer.")
    if start < 0 or context[start : start + len(text)] != text:
        place.fail(f"the answer {text!r} does not stand at character {start} of the context.")
    return text, start
