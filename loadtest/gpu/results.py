"""What the phases found: one JSON object a line, written at once, and the table of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Results:
    """Appends to ``path``; every process that writes there opens it anew for each line."""

    def __init__(self, path: Path, phase: str = "") -> None:
        self._path = path
        self._phase = phase

    def add(self, name: str, ok: bool | None = None, **values: Any) -> None:
        """``ok`` is None where nothing is judged: a figure, or something that cannot be tried here."""
        self._write({"phase": self._phase, "name": name, "ok": ok, **values})
        shown = ", ".join(f"{key} {_short(value)}" for key, value in values.items())
        print(f"   {_mark(ok)} {name}: {shown}", flush=True)

    def phase(self, name: str, seconds: float, state: str) -> None:
        """A phase has ended. One that was not started is no failure: the budget was too small."""
        ok = None if state.startswith("not started") else state == "done"
        self._write({"phase": name, "name": "phase", "ok": ok, "seconds": round(seconds, 1), "state": state})

    def _write(self, record: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(records: list[dict[str, Any]]) -> str:
    """A line for each phase, then one for each check that failed."""
    lines = [f"{'phase':10} {'seconds':>8} {'passed':>7} {'failed':>7} {'figures':>8}  state"]
    for end in (record for record in records if record["name"] == "phase"):
        found = [record["ok"] for record in records if record["phase"] == end["phase"] and record is not end]
        counts = [sum(ok is kind for ok in found) for kind in (True, False, None)]
        lines.append(
            f"{end['phase']:10} {end['seconds']:8.1f} {counts[0]:7} {counts[1]:7} {counts[2]:8}  {end['state']}"
        )
    failed = [record for record in records if record["ok"] is False and record["name"] != "phase"]
    lines += [f"FAILED {record['phase']}: {json.dumps(record)[:300]}" for record in failed]
    return "\n".join(lines)


def _mark(ok: bool | None) -> str:
    return {True: "ok    ", False: "FAILED", None: "      "}[ok]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)[:120]
