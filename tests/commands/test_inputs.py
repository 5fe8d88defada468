"""The inputs of `sluice predict`: each broken one is an error of its own line, and ends no run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from server.commands import inputs
from server.errors import ConfigurationError


def read(content: bytes, *, is_json: bool) -> list[Any]:
    file = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", errors="surrogateescape")
    return list(inputs.from_lines(file, is_json=is_json))


@pytest.mark.parametrize(("line", "is_json"), [(b"hello", False), (b'"hello"', True)])
def test_a_byte_order_mark_is_no_part_of_the_first_line(line: bytes, is_json: bool) -> None:
    assert read(b"\xef\xbb\xbf" + line + b"\n", is_json=is_json) == [("hello", {"inputs": "hello"})]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'"\\ud800"', "Line 2: a string has half of a surrogate pair"),
        (b'{"text": "a", "id": "\\ud83d"}', "Line 2: a string has half of a surrogate pair"),
        (b'{"text": "a", "text": "b"}', "Line 2: an object has 'text' twice"),
        (b'{"text": "a", "id": NaN}', "Line 2: NaN is not a number in JSON"),
        (b'{"text": "a", "id": ' + b"9" * 5000 + b"}", "Line 2: a number has too many digits"),
        (b"caf\xe9", "Line 2 is not UTF-8"),
    ],
)
def test_a_json_line_that_cannot_be_sent_or_returned_is_an_error_of_that_line(line: bytes, problem: str) -> None:
    good, broken, last = read(b'"a"\n' + line + b'\n"b"\n', is_json=True)
    assert (good, last) == (("a", {"inputs": "a"}), ("b", {"inputs": "b"}))
    assert problem in broken[1]
    assert broken[0].encode()


def test_a_text_that_is_not_utf8_is_an_error_of_that_text() -> None:
    argument = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert list(inputs.from_texts(["a", argument])) == [
        ("a", {"inputs": "a"}),
        ("caf\ufffd", "Text 2 is not UTF-8. Convert it."),
    ]
    assert read(b"caf\xe9\n", is_json=False) == [("caf\ufffd", "Line 1 is not UTF-8. Convert it.")]


def test_a_mistake_in_a_table_is_found_before_any_row_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,id\na,1\nb\n")
    with pytest.raises(ConfigurationError, match="line 3: 1 columns where the first line names 2"):
        inputs.from_table(path)


def test_counts_the_rows_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text\n"a\nb"\n\nc\n')
    rows, number = inputs.from_table(path)
    assert len(list(rows)) == number == 2
