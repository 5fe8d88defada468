"""The inputs of a batch: texts, or JSON lines, each as the body that its task's route takes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

BODY_FIELDS = ("inputs", "messages", "template")
"""A JSON object with one of these is a body already."""

Input = tuple[Any, dict[str, Any] | str]
"""A value and its body, or why it has none."""


def from_texts(texts: Iterable[str]) -> Iterator[Input]:
    """Each text and its body."""
    for text in texts:
        yield text, {"inputs": text}


def from_lines(file: TextIO, *, is_json: bool) -> Iterator[Input]:
    """Each line's value and its body; empty lines are left out."""
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        if is_json:
            yield _from_json(line, number)
        else:
            text = line.rstrip("\r\n")
            yield text, {"inputs": text}


def count_lines(path: Path) -> int:
    """Those that are not empty."""
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _from_json(line: str, number: int) -> Input:
    try:
        value = json.loads(line)
    except ValueError as error:
        return line.rstrip("\r\n"), f"Line {number} is not JSON ({error}). Write one JSON value per line."
    except RecursionError:
        return line.rstrip("\r\n"), f"Line {number} is nested too deeply."
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
    if isinstance(value, dict) and "question" in value and "context" in value:
        return {"inputs": {"question": value["question"], "context": value["context"]}}
    if isinstance(value, dict) and "text" in value:
        pair = value.get("text_pair")
        return {"inputs": value["text"] if pair is None else {"text": value["text"], "text_pair": pair}}
    return None
