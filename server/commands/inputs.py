"""The inputs of a batch: texts, JSON lines or rows of a table, each as the body that its task's route takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from server.errors import ConfigurationError
from server.finetune.files import Row, Table
from server.finetune.json_values import UnclearValue, json_value

BODY_FIELDS = ("inputs", "messages", "template")
"""A JSON object with one of these is a body already."""

Input = tuple[Any, dict[str, Any] | str]
"""A value and its body, or why it has none."""
NOT_UTF8 = "is not UTF-8. Convert it."


def from_texts(texts: Iterable[str]) -> Iterator[Input]:
    """Each text and its body."""
    for number, text in enumerate(texts, start=1):
        shown = _shown(text)
        yield (text, {"inputs": text}) if shown == text else (shown, f"Text {number} {NOT_UTF8}")


def from_lines(file: TextIO, *, is_json: bool, column: str | None = None) -> Iterator[Input]:
    """Each line's value and its body; empty lines are left out. ``column`` is the field of JSON that holds the text.

    ``file`` decodes bytes that are not UTF-8 to surrogates.
    """
    for number, whole in enumerate(file, start=1):
        line = whole.removeprefix("\ufeff") if number == 1 else whole
        if not line.strip():
            continue
        text = line.rstrip("\r\n")
        shown = _shown(text)
        if shown != text:
            yield shown, f"Line {number} {NOT_UTF8}"
        else:
            yield _from_json(text, number, column) if is_json else (text, {"inputs": text})


def _shown(text: str) -> str:
    """The text with a mark in place of what is not a character: it was no UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def from_table(path: Path, column: str | None = None) -> tuple[Iterator[Input], int]:
    """Each row of delimited text and its body, and the number of rows.

    Raises `ConfigurationError`, here for any mistake in the file: answers to rows before it would be lost.
    """

    def rows() -> Iterator[Row]:
        return (row for _, row in Table(path).rows([column or "text"]))

    first = next(rows(), {})
    if first and (column not in first if column else _fields(first) is None):
        raise ConfigurationError(
            f"{path} has no column {column or 'text'}. It has: {', '.join(first)}. Name one with --column."
        )
    num_rows = sum(1 for _ in rows())
    return ((row, {"inputs": row[column] if column else _fields(row)}) for row in rows()), num_rows


def count_lines(path: Path) -> int:
    """Those that are not empty."""
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _from_json(line: str, number: int, column: str | None) -> Input:
    try:
        value = json_value(line, is_strict=True)
    except UnclearValue as error:
        return line, f"Line {number}: {error}"
    except ValueError as error:
        return line, f"Line {number} is not JSON ({error}). Write one JSON value per line."
    except RecursionError:
        return line, f"Line {number} is nested too deeply."
    if column is not None:
        text = value.get(column) if isinstance(value, dict) else None
        return value, {"inputs": text} if isinstance(text, str) else f"Line {number} has no text named {column}."
    body = _body(value)
    if body is None:
        fields = ", ".join(BODY_FIELDS)
        return (
            value,
            f"Line {number} must be a string or an object with text, with question, or one of {fields}.",
        )
    return value, body


def _body(value: Any) -> dict[str, Any] | None:
    """
    >>> _body("hello"), _body({"text": "a", "text_pair": "b", "id": 7}), _body(7)
    ({'inputs': 'hello'}, {'inputs': {'text': 'a', 'text_pair': 'b'}}, None)
    >>> _body({"question": "Who?", "context": "Ann", "id": 7})
    {'inputs': {'question': 'Who?', 'context': 'Ann'}}
    """
    if isinstance(value, str):
        return {"inputs": value}
    if isinstance(value, dict) and any(name in value for name in BODY_FIELDS):
        return value
    inputs = _fields(value) if isinstance(value, dict) else None
    return None if inputs is None else {"inputs": inputs}


def _fields(row: dict[str, Any]) -> Any:
    """What is asked about, from fields with the usual names; None where there are none."""
    if "question" in row and "context" in row:
        return {"question": row["question"], "context": row["context"]}
    if row.get("text_pair") is not None and "text" in row:
        return {"text": row["text"], "text_pair": row["text_pair"]}
    return row.get("text")
