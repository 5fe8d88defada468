"""Two load tests of one scenario side by side: before a change and after it.

    python loadtest/compare_runs.py before.json after.json

A number is marked where it moved by more than a tenth, which is what a machine alone does to it between two runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from report import table

NOISE = 0.1
NUMBERS = {
    "answered_per_s": "answered/s", "tokens_per_s": "tokens/s", "ttft_p50_s": "TTFT p50", "ttft_p95_s": "TTFT p95",
    "gap_p50_s": "gap p50", "gap_p95_s": "gap p95", "total_p95_s": "total p95", "good_share": "within limits",
}  # fmt: skip


class NotComparable(Exception):
    """The two runs did not do the same; the message says in what they differ."""


def rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[list[str]]:
    """One for each load that both ran. Raises `NotComparable`."""
    for what in ("scenario", "machine"):
        mine, other = (_identity(content, what) for content in (before, after))
        if mine != other:
            raise NotComparable(f"The runs differ in their {what}: {mine} and {other}.")
    found = []
    for loop, key in (("open", "rate"), ("closed", "clients")):
        others = {point[key]: point for point in after["results"][loop]}
        for point in before["results"][loop]:
            if point[key] in others:
                load = f"{point[key]:g}" + ("/s" if key == "rate" else " clients")
                found.append([load, *(_change(point[name], others[point[key]][name]) for name in NUMBERS)])
    if not found:
        raise NotComparable("The runs have no rate and no number of clients in common.")
    return found


def _identity(content: Mapping[str, Any], what: str) -> Any:
    if what == "machine":
        return content["machine"]["cpu"], content["machine"]["cpus"]
    return {name: value for name, value in content["scenario"].items() if name not in ("rates", "clients")}


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None or not before:
        return "-"
    ratio = after / before
    mark = "" if abs(ratio - 1.0) <= NOISE else " *"
    return f"{ratio:.2f}x{mark}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    args = parser.parse_args()
    try:
        before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (args.before, args.after))
        found = rows(before, after)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"not the results of two load tests: {error}")
    except NotComparable as error:
        parser.error(str(error))
    print(table(["load", *NUMBERS.values()], found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
