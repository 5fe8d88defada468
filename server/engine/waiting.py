"""Groups that wait for their first or next step. Knows no blocks.

The next group is one of a caller of whom no row runs, or far fewer than of another, and among those and then the
others, of the caller that has had the least work done. Waiting counts too, so that newcomers keep nobody out for ever.
Each caller's own groups keep the order of arrival, and one that was preempted comes first. A group that would have to
give way to another caller's again comes after that one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from server.engine.sequence_group import SequenceGroup

AGEING_TOKENS = 1
"""Each later arrival makes up for this much work."""
FAR_MORE = 2
"""A caller with this many times as many rows as another has far more."""


@dataclass(slots=True)
class _Share:
    """One caller's, for as long as it has groups."""

    work: float
    """Tokens that were computed for it; one that begins has as much as the one with the least."""
    waiting: OrderedDict[str, SequenceGroup] = field(default_factory=OrderedDict)
    running: dict[str, SequenceGroup] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """That run."""
        return sum(group.num_rows for group in self.running.values())


class _Claim(NamedTuple):
    """A caller's next group, beside the rows of its caller that run."""

    group: SequenceGroup
    num_rows: int

    def displaces(self, other: _Claim) -> bool:
        """Whether ``other``, once it runs, would have to give way to this one: see `giving_way.displaced`."""
        return other.num_rows > 0 and (
            self.num_rows == 0 or other.num_rows >= FAR_MORE * (self.num_rows + self.group.num_rows)
        )


class Waiting:
    """The queue of a `Scheduler`, which tells it what begins and ends."""

    def __init__(self) -> None:
        self._shares: dict[str, _Share] = {}
        self._groups: dict[str, SequenceGroup] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[SequenceGroup]:
        """Each caller's in order."""
        for share in self._shares.values():
            yield from share.waiting.values()

    @property
    def num_callers(self) -> int:
        """With groups that wait or run."""
        return len(self._shares)

    def get(self, request_id: str) -> SequenceGroup | None:
        return self._groups.get(request_id)

    def add(self, group: SequenceGroup, *, comes_first: bool = False) -> None:
        """``comes_first`` of its caller's."""
        if group.caller not in self._shares:
            least = min((share.work for share in self._shares.values()), default=0.0)
            self._shares[group.caller] = _Share(least)
        waiting = self._shares[group.caller].waiting
        waiting[group.request_id] = self._groups[group.request_id] = group
        waiting.move_to_end(group.request_id, last=not comes_first)

    def remove(self, request_id: str) -> bool:
        """Forget a group. Whether it was here."""
        group = self._groups.pop(request_id, None)
        if group is None:
            return False
        del self._shares[group.caller].waiting[request_id]
        self._tidy(group.caller)
        return True

    def next(self) -> SequenceGroup | None:
        """Whose turn it is."""
        able = [share for share in self._shares.values() if share.waiting]
        if len(able) <= 1:
            return _head(able[0]) if able else None
        claims = [_Claim(_head(share), share.num_rows) for share in able]
        most = max(share.num_rows for share in self._shares.values())
        stable = [claim for claim in claims if not any(other.displaces(claim) for other in claims)]
        return min(stable, key=lambda claim: self._turn(claim, most)).group

    def begin(self, group: SequenceGroup) -> None:
        """The group runs."""
        self._shares[group.caller].running[group.request_id] = group
        self.remove(group.request_id)

    def end(self, group: SequenceGroup) -> None:
        """The group runs no more."""
        del self._shares[group.caller].running[group.request_id]
        self._tidy(group.caller)

    def of(self, caller: str) -> list[SequenceGroup]:
        """One caller's in order."""
        return list(self._shares[caller].waiting.values())

    def charge(self, caller: str, num_tokens: int) -> None:
        """Tokens are computed for a caller whose group runs."""
        self._shares[caller].work += num_tokens

    def _turn(self, claim: _Claim, most: int) -> tuple[bool, float, int]:
        """``most`` rows run of one caller."""
        group, work = claim.group, self._shares[claim.group.caller].work
        return FAR_MORE * claim.num_rows > most, work + AGEING_TOKENS * group.order, group.order

    def _tidy(self, caller: str) -> None:
        share = self._shares[caller]
        if not share.waiting and not share.running:
            del self._shares[caller]


def _head(share: _Share) -> SequenceGroup:
    return next(iter(share.waiting.values()))
