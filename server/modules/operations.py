"""A layer as a list of operations over a few places for tensors: the one order in which a layer is computed.

torch runs an operation by its `run`; `chained` makes kernels of one chain of them.

Dimension key: T tokens, X values of a token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from server.modules.add_norm import AddNorm
from server.modules.layout import Attention, Layer, Packed, Sublayer
from server.modules.parts import Norm

HIDDEN, READ, PROJECTED, ATTENDED, WIDENED, ADDED = range(6)
"""Places: the hidden states, what a sublayer reads of them, queries with keys and values, the results of attention, an
MLP's way up, and what is to be added to the hidden states."""

NUM_PLACES = 6

Attend = Callable[[int, Attention, Tensor], Tensor]
"""From the number of the layer, its attention and ``[T, X]`` of its projections to ``[T, X]`` of all heads' results.
Attention to a source has queries alone.

Where only some tokens go on, it returns theirs alone.
"""

Places = list[Tensor]
"""A tensor for each place; before it is written, any."""


@dataclass(frozen=True, kw_only=True)
class Operation(ABC):
    """Reads places and writes one."""

    source: int
    to: int
    residual: int | None = None
    """What is added to the result."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Values of a token in its result."""

    @abstractmethod
    def run(self, places: Places, attend: Attend) -> None:
        """Compute ``to``."""

    @property
    def reads(self) -> set[int]:
        return {self.source} if self.residual is None else {self.source, self.residual}

    @property
    def writes(self) -> set[int]:
        return {self.to}


@dataclass(frozen=True, kw_only=True)
class Normalise(Operation):
    norm: Norm

    @property
    def width(self) -> int:
        return self.norm.weight_D.shape[0]

    def run(self, places: Places, attend: Attend) -> None:  # noqa: ARG002
        residual = None if self.residual is None else places[self.residual]
        places[self.to] = self.norm(places[self.source], residual)


@dataclass(frozen=True, kw_only=True)
class Multiply(Operation):
    """The one place where a layer's products are computed."""

    product: Packed
    multiplier: float = 1.0
    out_float: bool = False

    @property
    def width(self) -> int:
        return self.product.out_features

    def run(self, places: Places, attend: Attend) -> None:  # noqa: ARG002
        x_TX = places[self.source]
        if self.residual is None:
            places[self.to] = self.product(x_TX, out_float=self.out_float)
        elif self.multiplier == 1.0:
            places[self.to] = self.product(x_TX, places[self.residual])
        else:
            places[self.to] = torch.add(places[self.residual], self.product(x_TX), alpha=self.multiplier)


@dataclass(frozen=True, kw_only=True)
class NormProjected(Operation):
    """Norms of all queries of a token, and of all its keys."""

    attention: Attention

    @property
    def width(self) -> int:
        return sum(self.attention.spec.projected_widths)

    def run(self, places: Places, attend: Attend) -> None:  # noqa: ARG002
        assert self.attention.wide_norms is not None
        query_norm, key_norm = self.attention.wide_norms
        query, key, value = torch.split(places[self.source], self.attention.spec.projected_widths, dim=-1)
        parts = (query_norm(query.contiguous()), key_norm(key.contiguous()), value)
        places[self.to] = torch.cat(parts, dim=-1)


@dataclass(frozen=True, kw_only=True)
class Attending(Operation):
    layer: int
    attention: Attention
    kept: frozenset[int] = frozenset()
    """Places that the operations after it read as they are: their rows must be those that go on."""

    @property
    def width(self) -> int:
        return self.attention.spec.attended_width

    def run(self, places: Places, attend: Attend) -> None:
        places[self.to] = attend(self.layer, self.attention, places[self.source])


@dataclass(frozen=True, kw_only=True)
class NormSum(Operation):
    """``to = norm(to + source)``, and the place that sublayers read has it in the products' dtype."""

    add_norm: AddNorm

    @property
    def width(self) -> int:
        return self.add_norm.width

    def run(self, places: Places, attend: Attend) -> None:  # noqa: ARG002
        places[READ] = self.add_norm(places[self.source], places[self.to])

    @property
    def reads(self) -> set[int]:
        return {self.source, self.to}

    @property
    def writes(self) -> set[int]:
        return {self.to, READ}


def widths(steps: Iterable[Operation]) -> list[int]:
    """Of each place, what the widest operation writes there."""
    found = [0] * NUM_PLACES
    for step in steps:
        found[step.to] = max(found[step.to], step.width)
    return found


def operations(layer: Layer[Packed], index: int, *, is_wide: bool = False) -> tuple[Operation, ...]:
    """Of one layer, in order; ``index`` is its number.

    ``is_wide``: hidden states that are normed as sums are float32, whatever the products' dtype.
    """
    groups = [layer.sublayers] if layer.is_parallel else [(sublayer,) for sublayer in layer.sublayers]
    found: list[Operation] = []
    for group in groups:
        read: Norm | None = None
        for sublayer in group:
            if sublayer.norm is not None and sublayer.norm is not read:
                found.append(Normalise(source=HIDDEN, to=READ, norm=sublayer.norm))
            read = sublayer.norm
            found += _inner(sublayer, index, is_wide=is_wide)
        for sublayer in group:
            found += _joining(sublayer, is_wide=is_wide)
    return tuple(_keeping(operation, found[i + 1 :]) for i, operation in enumerate(found))


def _inner(sublayer: Sublayer[Packed], index: int, *, is_wide: bool) -> list[Operation]:
    """From what it reads to what its second product takes."""
    reads_hidden = sublayer.norm is None and not (sublayer.norms_sum and is_wide)
    source, attention = HIDDEN if reads_hidden else READ, sublayer.attention
    if attention is None:
        return [Multiply(source=source, to=WIDENED, product=sublayer.first)]
    found: list[Operation] = [Multiply(source=source, to=PROJECTED, product=sublayer.first)]
    if attention.wide_norms is not None:
        found.append(NormProjected(source=PROJECTED, to=PROJECTED, attention=attention))
    return [*found, Attending(source=PROJECTED, to=ATTENDED, layer=index, attention=attention)]


def _joining(sublayer: Sublayer[Packed], *, is_wide: bool) -> list[Operation]:
    """From there to the hidden states."""
    source, product = WIDENED if sublayer.attention is None else ATTENDED, sublayer.second
    if sublayer.post_norm is None:
        multiplier = sublayer.multiplier
        return [Multiply(source=source, to=HIDDEN, residual=HIDDEN, product=product, multiplier=multiplier)]
    if not sublayer.norms_sum:
        return [
            Multiply(source=source, to=ADDED, product=product),
            Normalise(source=ADDED, to=HIDDEN, residual=HIDDEN, norm=sublayer.post_norm),
        ]
    if not is_wide:
        return [
            Multiply(source=source, to=ADDED, residual=HIDDEN, product=product, multiplier=sublayer.multiplier),
            Normalise(source=ADDED, to=HIDDEN, norm=sublayer.post_norm),
        ]
    # Only our kernels have it in float32 anyway; for the others it would be a step more and gain nothing.
    return [
        Multiply(source=source, to=ADDED, product=product, out_float=product.is_row_invariant),
        NormSum(source=ADDED, to=HIDDEN, add_norm=AddNorm(sublayer.post_norm, product.dtype)),
    ]


def _keeping(operation: Operation, later: Sequence[Operation]) -> Operation:
    if not isinstance(operation, Attending):
        return operation
    kept: set[int] = set()
    written = operation.writes
    for each in later:
        kept |= each.reads - written
        written = written | each.writes
    return replace(operation, kept=frozenset(kept))


def run(
    steps: Sequence[Operation],
    hidden_TX: Tensor,
    attend: Attend,
    *,
    read_TX: Tensor | None = None,
    wanted_R: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The hidden states after one layer's operations, and what a layer after them reads where that is not the same.

    ``read_TX`` is that of the layer before. With ``wanted_R`` all tokens are attended to and only those go on, which
    ``attend`` has to know.
    """
    places = [hidden_TX] * NUM_PLACES
    if read_TX is not None:
        places[READ] = read_TX
    for step in steps:
        step.run(places, attend)
        if wanted_R is not None and isinstance(step, Attending):
            for place in step.kept:
                places[place] = places[place][wanted_R]
            if not len(wanted_R):
                return hidden_TX[:0], hidden_TX[:0]
    return places[HIDDEN], places[READ]
