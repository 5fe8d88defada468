"""Reads pairs of source and target texts: CSV, TSV or JSONL."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from server.errors import ConfigurationError
from server.finetune.files import Table, column_of, text_of


@dataclass(frozen=True)
class RewriteExample:
    """A text, and its translation, summary or other rewriting."""

    source: str
    target: str


def read_rewrites(path: Path, source: str = "source", target: str = "target") -> tuple[list[RewriteExample], list[str]]:
    """The examples, and notes about the file. ``source`` and ``target`` are names of columns."""
    if path.suffix.lower() not in (".csv", ".tsv", ".jsonl", ".json"):
        raise ConfigurationError(f"{path}: pairs of source and target must be in a .csv, .tsv or .jsonl file.")
    if source == target:
        raise ConfigurationError(f"--source-column and --target-column are both {source!r}. Name two columns.")
    table = Table(path)
    examples: list[RewriteExample] = []
    unused: dict[str, None] = {}
    for number, row in table.rows([source, target]):
        texts = (
            text_of(path, number, column_of(path, number, row, column, option), "text in " + repr(column))
            for column, option in ((source, "--source-column"), (target, "--target-column"))
        )
        examples.append(RewriteExample(*texts))
        unused |= dict.fromkeys(row.keys() - {source, target})
    if not examples:
        raise ConfigurationError(f"{path} holds no examples.")
    notes = [*table.notes, *([f"columns not used: {', '.join(sorted(unused))}"] if unused else [])]
    return examples, notes
