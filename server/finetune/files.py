"""Rows of data files as people have them: JSON lines and delimited text. Knows nothing of labels.

A mistake in a file is a `ConfigurationError` that names the line.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from server.errors import ConfigurationError
from server.finetune.json_values import UnclearValue, json_value

csv.field_size_limit(16 * 1024 * 1024)

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
RETURNS = "its lines end with a carriage return alone. End them with a line feed."
BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}

_PAIRS = re.compile(rb"[\x80-\xff]{4}|(?<![A-Za-z\x80-\xff])[\x80-\xff]{2}(?![A-Za-z\x80-\xff])")

Row = dict[str, Any]


@dataclass
class Table:
    """Rows with their line numbers, and what there is to say of the file once they are read."""

    path: Path
    notes: list[str] = field(default_factory=list)
    num_empty: int = 0

    def rows(self, needed: Sequence[str]) -> Iterator[tuple[int, Row]]:
        """``needed`` are the columns that must be there; which separator gives them is the file's."""
        if self.path.suffix.lower() in (".csv", ".tsv"):
            yield from self._delimited(needed)
        else:
            yield from json_rows(self.path)
        if self.num_empty:
            self.notes.append(f"{self.num_empty} empty rows left out")

    def _delimited(self, needed: Sequence[str]) -> Iterator[tuple[int, Row]]:
        delimiter = self._delimiter(needed)
        reader = csv.reader((line + "\n" for _, line in lines(self.path)), delimiter=delimiter, strict=True)
        records = _records(self.path, reader)
        _, header = next(records, (0, []))
        names = self._names(header)
        for number, record in records:
            if not any(cell.strip() for cell in record):
                self.num_empty += 1
            elif len(record) != len(header):
                fail(self.path, number, f"{len(record)} columns where the first line names {len(header)}.")
            else:
                yield number, {name: cell for name, cell in zip(names, record, strict=True) if name}

    def _delimiter(self, needed: Sequence[str]) -> str:
        """The one that parts the first line into the columns that are needed, or else into the most."""
        first = next((line for _, line in lines(self.path)), "")
        if not first:
            raise ConfigurationError(f"{self.path} is empty. Its first line must name the columns, such as text,label.")
        usual = "\t" if self.path.suffix.lower() == ".tsv" else ","

        def fit(delimiter: str) -> tuple[bool, bool, int]:
            columns = [column.strip(' "') for column in first.split(delimiter)]
            return set(needed) <= set(columns), delimiter == usual and len(columns) > 1, len(columns)

        delimiter = max(DELIMITERS, key=fit)
        if delimiter != usual and delimiter in first:
            self.notes.append(f"columns separated by {DELIMITERS[delimiter]}")
        return delimiter

    def _names(self, header: Sequence[str]) -> list[str]:
        names = [name.strip() for name in header]
        if twice := [name for place, name in enumerate(names) if name and name in names[:place]]:
            fail(self.path, 1, f"two columns are named {twice[0]!r}. Give each its own name.")
        return names


def fail(path: Path, line: int, problem: str) -> NoReturn:
    raise ConfigurationError(f"{path}, line {line}: {problem}")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends."""
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder. Give --data or --eval-data a file.")
    if not path.is_file():
        raise ConfigurationError(f"There is no data file {path}. Give --data or --eval-data an existing file.")
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = _decoded(path, number, raw).rstrip("\r\n")
                if number == 1 and "\r" in line:
                    fail(path, number, RETURNS)
                yield number, line
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None


def _decoded(path: Path, number: int, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        if _is_double_byte(raw):
            fail(
                path, number,
                f"it is not UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}, as in GBK and other "
                f"encodings of Chinese, Japanese and Korean. Convert the file: iconv -f GBK -t UTF-8 {path.name}",
            )  # fmt: skip
        encoding = BYTE_ORDER_MARKS.get(raw[:2]) if number == 1 else None
        if encoding:
            fail(path, number, f"it is not UTF-8. The file begins as {encoding}. Save it as UTF-8.")
        byte = raw[error.start]
        # These bytes are letters and signs in Latin-1 and its Windows form; below 0xA0 only in the second.
        encoding = "Windows-1252 (Latin-1)" if byte < 0xA0 else "Latin-1 (Windows-1252)"
        fail(
            path, number,
            f"it is not UTF-8: byte 0x{byte:02x} at column {len(raw[: error.start].decode('utf-8', 'replace')) + 1}, "
            f"as in {encoding}. Convert the file: iconv -f WINDOWS-1252 -t UTF-8 {path.name}",
        )  # fmt: skip


def _is_double_byte(raw: bytes) -> bool:
    """Whether the bytes above ASCII are pairs, as in GBK. In Latin-1 they are single letters among others."""
    try:
        is_text = " ".join(raw.decode("gb18030").split()).isprintable()
    except UnicodeDecodeError:
        return False
    return is_text and _PAIRS.search(raw) is not None


def json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            row = json_value(line)
        except UnclearValue as error:
            fail(path, number, str(error))
        except json.JSONDecodeError as error:
            fail(path, number, f"it is not JSON ({error.msg} at column {error.colno}). Write one object a line.")
        except RecursionError:
            fail(path, number, "its JSON is nested too deeply. Write one object a line.")
        if not isinstance(row, dict):
            fail(path, number, f"it is a JSON {type(row).__name__}. Write one object a line.")
        yield number, row


def column_of(path: Path, number: int, row: Row, name: str, option: str) -> Any:
    if name not in row:
        fail(path, number, f"there is no column {name!r}, only {', '.join(map(repr, row))}. Name it with {option}.")
    return row[name]


def text_of(path: Path, number: int, value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        fail(
            path, number, f"the {name} is empty." if value in ("", None) else f"the {name} is not a string with words."
        )
    return value


def column_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Rows of at least two columns, all with the same number of them; an empty one between sentences.

    Spaces and tabs separate columns; only tabs do where the rows have different numbers of columns otherwise, because
    words may hold spaces.
    """
    by_any, by_tabs = (_split_rows(path, separator) for separator in ("[ \t]+", "\t+"))
    odd = _odd_row(by_any)
    if odd is None:
        return by_any
    if _odd_row(by_tabs) is None:
        return by_tabs
    number, columns = odd
    if len(columns) == 1:
        fail(path, number, "one column. Write a word, then its tag, with a space or a tab between.")
    fail(
        path, number,
        f"{len(columns)} columns, unlike the first line. Give all lines the same columns, with tabs between them.",
    )  # fmt: skip


def _split_rows(path: Path, separator: str) -> list[tuple[int, list[str]]]:
    rows = []
    for number, line in lines(path):
        if "\r" in line:
            fail(path, number, RETURNS)
        # Not at every space of Unicode: some corpora have words with a no-break space inside.
        columns = [column.strip(" ") for column in re.split(separator, line.strip(" \t"))]
        rows.append((number, [] if columns[0].partition(" ")[0] in ("", "-DOCSTART-") else columns))
    return rows


def _odd_row(rows: Sequence[tuple[int, list[str]]]) -> tuple[int, list[str]] | None:
    """The first row that has one column, or another number of them than the first."""
    filled = [row for row in rows if row[1]]
    return next((row for row in filled if len(row[1]) == 1 or len(row[1]) != len(filled[0][1])), None)


def _records(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Each with the line that it begins in."""
    start = 1
    try:
        for record in reader:
            yield start, record
            start = reader.line_num + 1
    except csv.Error as error:
        is_open = "unexpected end of data" in str(error)
        problem = "a quote is opened here and never closed" if is_open else str(error)
        where = f" (seen in line {reader.line_num})" if reader.line_num > start and not is_open else ""
        fail(path, start, f"it is not CSV: {problem}{where}. Write a quote inside of quotes twice.")
