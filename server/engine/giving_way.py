"""Which rows give way to another caller's: out of the batch for good, or for one step. Knows no blocks.

A caller that has far fewer rows than another gets room from it, by preemption.

A step with the next tokens of many rows takes several times as long as a short prompt alone. Where one caller has those
rows and another one's prompt is short, the prompt goes first and the rows follow in the next step. What they compute is
the same, a step later. While there are several callers, steps compute few tokens of prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from server.engine.sequence_group import SequenceGroup
from server.engine.waiting import FAR_MORE

MANY_TIMES = 4
"""A caller with more than this many times as many rows as another is left out of a step."""

LATELY = 32
"""Steps."""
SHARED_STEP_S = 0.1
"""For prompts, in each step while there are several callers: a request waits for the end of the step before its own."""


@dataclass(frozen=True)
class Held:
    """What a step leaves out."""

    callers: frozenset[str] = frozenset()
    num_rows: int = 0
    """Theirs."""


NOTHING = Held()


class GivingWay:
    """Chooses before each step. Two steps in a row never leave rows out, so none stops."""

    def __init__(self) -> None:
        self._last = NOTHING
        self._num_alone = LATELY
        """Steps since there were several callers."""

    @property
    def is_shared(self) -> bool:
        """Whether there are several callers, or were lately: one who came back soon may come back again."""
        return self._num_alone < LATELY

    def note(self, num_callers: int) -> None:
        """Told before each step."""
        self._num_alone = 0 if num_callers > 1 else self._num_alone + 1

    def choose(self, running: Iterable[SequenceGroup], next_: SequenceGroup | None) -> Held:
        """What this step leaves out; ``next_`` is the group that is admitted next."""
        self._last = NOTHING if self._last.callers else _held(list(running), next_)
        return self._last


def _held(running: list[SequenceGroup], next_: SequenceGroup | None) -> Held:
    rows = _rows_by_caller(running)
    guests = [] if next_ is None else [next_]
    if len(rows) > 1:
        guests += [group for group in running if not group.has_begun and group.num_due]
    guest = min(guests, key=lambda group: rows[group.caller], default=None)
    if guest is None:
        return NOTHING
    callers = frozenset(caller for caller, num in rows.items() if num > MANY_TIMES * max(1, rows[guest.caller]))
    num_rows = sum(rows[caller] for caller in callers)
    # No prompt that takes longer than the rows do: they would lose more than they give.
    waits = guest.num_source_left + sum(row.num_tokens for row in guest.leaders)
    due = guest.num_due if guest.rows else waits
    return Held(callers, num_rows) if due <= num_rows else NOTHING


def displaced(running: Iterable[SequenceGroup], coming: list[SequenceGroup]) -> SequenceGroup | None:
    """Of running groups, oldest first, the one that makes way for ``coming``, which are one caller's; None if none.

    It is the newest of the caller with the most rows. That caller keeps another group, and far more rows than the other
    one gets: were they even, each row that ends would displace another. The first group of a caller of whom nothing
    runs gets any number.
    """
    groups: dict[str, list[SequenceGroup]] = {}
    for group in running:
        groups.setdefault(group.caller, []).append(group)
    own = groups.pop(coming[0].caller, [])
    several = [others for others in groups.values() if len(others) > 1]
    largest = max(several, key=_num_rows, default=None)
    if largest is None:
        return None
    is_first = not own and len(coming) == 1
    return largest[-1] if is_first or _num_rows(largest[:-1]) >= FAR_MORE * _num_rows(own + coming) else None


def _num_rows(groups: list[SequenceGroup]) -> int:
    return sum(group.num_rows for group in groups)


def _rows_by_caller(groups: Iterable[SequenceGroup]) -> Counter[str]:
    rows: Counter[str] = Counter()
    for group in groups:
        rows[group.caller] += group.num_rows
    return rows
