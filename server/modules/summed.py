"""Additions to the hidden states that are one step with the norm of their sum, which a GPU starts with one launch.

On a CPU the addition is part of the product before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.modules.operations import ADDED, HIDDEN, READ, Attend, Multiply, Normalise, Operation, Places
from server.modules.parts import Norm


@dataclass(frozen=True, kw_only=True)
class SumAndNorm(Operation):
    """``to = to + source``, and the place that sublayers read has its norm."""

    norm: Norm

    @property
    def width(self) -> int:
        return self.norm.weight_D.shape[0]

    def run(self, places: Places, attend: Attend) -> None:  # noqa: ARG002
        places[self.to], places[READ] = self.norm.of_sum(places[self.to], places[self.source])

    @property
    def reads(self) -> set[int]:
        return {self.source, self.to}

    @property
    def writes(self) -> set[int]:
        return {self.to, READ}


def summed(layers: Sequence[Sequence[Operation]]) -> list[tuple[Operation, ...]]:
    """The same layers. Where one begins with the norm of what the one before adds, it is left to that one."""
    found: list[list[Operation]] = []
    for layer in layers:
        found.append([])
        for operation in layer:
            before = next((each[-1] for each in reversed(found) if each), None)
            if not (isinstance(operation, Normalise) and isinstance(before, Multiply) and _fit(before, operation)):
                found[-1].append(operation)
                continue
            holder = next(each for each in reversed(found) if each)
            holder[-1:] = [
                Multiply(source=before.source, to=ADDED, product=before.product),
                SumAndNorm(source=ADDED, to=HIDDEN, norm=operation.norm),
            ]
    return [tuple(layer) for layer in found]


def _fit(product: Multiply, norm: Normalise) -> bool:
    is_added = product.to == product.residual == HIDDEN and product.multiplier == 1.0
    return is_added and norm.source == HIDDEN and norm.to == READ and norm.residual is None
