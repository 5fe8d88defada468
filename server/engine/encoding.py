"""How an encoder's work on a source is cut into parts that single steps compute. Knows no tensors.

A unit is one token in one pass. All tokens of a source go through a pass before any goes through the next one, so that
a number of units says how far a source has come. No result depends on where it is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from server.engine.sources import Source

MULTIPLE = 16
"""Parts end at multiples of this many tokens of a pass, which suits matrix products."""


class SourcePart(NamedTuple):
    """A source's part of a step: it goes on from what earlier steps have computed."""

    source: Source
    stop: int
    """Units of the source that are computed after the step."""
    is_last: bool
    """Whether these are all."""


@dataclass(frozen=True)
class EncoderPasses:
    """What each pass of an encoder costs."""

    token_costs: Sequence[float]
    """Multiplications for each token, by pass."""
    pair_costs: Sequence[float]
    """For each token and each token of its source that it sees, by pass."""
    can_cut: bool = True
    kept_bytes: int = 0
    """Of each token of a source that has begun and is not complete."""

    def num_units(self, length: int) -> int:
        """Of a source with ``length`` tokens."""
        return len(self.token_costs) * length

    def num_tokens(self, length: int, start: int, stop: int) -> int:
        """Units ``start`` to ``stop - 1`` in whole tokens of a short source that would cost as much."""
        cost = 0.0
        for index in range(len(self.token_costs)):
            first, last = max(start, index * length), min(stop, (index + 1) * length)
            cost += max(0, last - first) * self._unit_cost(index, length)
        return ceil(cost / sum(self.token_costs))

    def reach(self, length: int, start: int, num_tokens: float) -> int:
        """How many units are computed after a step that has computed ``start`` before and may cost ``num_tokens``.

        At least a few more than ``start``, whatever they cost.
        """
        total = self.num_units(length)
        if not self.can_cut:
            return total
        left, unit = num_tokens * sum(self.token_costs), start
        while unit < total:
            index, token = divmod(unit, length)
            unit_cost = self._unit_cost(index, length)
            if (length - token) * unit_cost > left:
                last = token + int(left / unit_cost)
                unit = index * length + max(token, last // MULTIPLE * MULTIPLE)
                break
            unit += length - token
            left -= (length - token) * unit_cost
        return max(unit, min(start + MULTIPLE, total))

    def _unit_cost(self, index: int, length: int) -> float:
        return self.token_costs[index] + length * self.pair_costs[index]


WHOLE = EncoderPasses((1.0,), (0.0,), can_cut=False)
"""Of encoders that read a source in one go."""


def whole(source: Source, passes: EncoderPasses = WHOLE) -> SourcePart:
    """All of a source in one step."""
    return SourcePart(source, passes.num_units(len(source.ids)), is_last=True)
