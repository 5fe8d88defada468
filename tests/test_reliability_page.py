"""`server/RELIABILITY.md` has each promise once, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "server" / "RELIABILITY.md"
FREE = {30, 31, 38, 39}
"""Numbers without a promise."""
TEST = re.compile(r"`(tests/\S+\.py)::(\w+)`")
ROW = re.compile(r"\| R(\d\d) \| (.+) \| (.+) \|")
NOT_BUILT = "Not built: "


def rows() -> list[tuple[int, str, str]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| R")]
    found = [ROW.fullmatch(line) for line in lines]
    assert all(found), lines
    return [(int(match[1]), match[2], match[3]) for match in found if match]


@cache
def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assigned = {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
                if isinstance(target, ast.Name)}  # fmt: skip
    return defined | assigned


def test_each_promise_is_there_once_and_in_order() -> None:
    numbers = [number for number, _, _ in rows()]
    assert numbers == sorted(set(range(1, 85)) - FREE)


def test_every_named_test_exists() -> None:
    for number, _, checked_by in rows():
        found = TEST.findall(checked_by)
        assert found or checked_by.startswith(NOT_BUILT), f"R{number:02} names neither a test nor a reason"
        for path, name in found:
            assert name in names_in(path), f"R{number:02}: {path} has no {name}"
