"""Compared things are measured in turn, round by round, so that a slow minute of the machine meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

PAUSE_S = 0.4
"""Between two sides, for threads that still spin."""

Numbers = dict[str, Any]
Given = TypeVar("Given")


def interleave(
    sides: Mapping[str, Callable[[Given], Numbers]], given: Callable[[], Given], rounds: int
) -> list[dict[str, Numbers]]:
    """Per round what each side measured on what was given to all. Each round begins with another side."""
    names = list(sides)
    measured = []
    for index in range(rounds):
        shared = given()
        first = index % len(names)
        results = {}
        for name in names[first:] + names[:first]:
            results[name] = sides[name](shared)
            time.sleep(PAUSE_S)
        measured.append({name: results[name] for name in names})
    return measured


def medians(rounds: Sequence[Mapping[str, Numbers]]) -> dict[str, Numbers]:
    """Each side's numbers, each the median over the rounds."""
    return {
        side: {key: median(each[side].get(key) for each in rounds) for key in rounds[0][side]} for side in rounds[0]
    }


def ratio(rounds: Sequence[Mapping[str, Numbers]], key: str, side: str, to: str) -> float:
    """Median over the rounds of ``side``'s number as a multiple of ``to``'s in the same round."""
    return statistics.median(each[side][key] / each[to][key] for each in rounds)


def median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
