"""An encoder's layers over texts end to end, cut into passes before each attention.

The first pass ends with the first layer's queries, keys and values; each of the others begins with the attention to
them. Within a pass a token needs nothing of another token. So a pass may run for some tokens now and for others later,
and no result depends on where it is cut.

Dimension key: S tokens of all texts, D width of the hidden states, X of queries, keys and values together.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from server.modules.chained import Unchained, add_link
from server.modules.layout import Attention
from server.modules.operations import ATTENDED, HIDDEN, NUM_PLACES, PROJECTED, Attending, Operation, widths
from server.modules.text_attention import KERNEL_MAX_HEAD_DIM, attending_queries
from server.modules.texts import Queries, Texts
from server.modules.unsupported import Unsupported
from server.native import abi, kernels
from server.native.chain import Chain
from server.number_types import CacheKind

OTHER_PROJECTED = NUM_PLACES
"""The place of every second layer's projections: while some tokens have them, others attend to those before."""

Pass = tuple[Operation, ...]


class TextStates:
    """What is kept of texts between passes."""

    def __init__(self, texts: Texts, hidden_SD: Tensor, projected_width: int) -> None:
        self.texts = texts
        self.hidden_SD = hidden_SD.contiguous()
        self.projected = [hidden_SD.new_empty(len(hidden_SD), projected_width) for _ in range(2)]
        """``[S, X]``, of even and of odd layers."""


class TextPasses:
    """The passes of one encoder: one more than it has layers."""

    def __init__(self, layers: Sequence[Sequence[Operation]], dtype: torch.dtype, device: torch.device) -> None:
        """Raises `Unsupported` where more than hidden states and projections go from one pass to the next."""
        self.passes = _cut(layers)
        found = {step.width for each in self.passes for step in each if step.to == PROJECTED}
        if len(found) != 1:
            raise Unsupported("its encoder's layers have projections of several widths")
        [self._projected_width] = found
        self._chained = _chained(self.passes, dtype, device)

    def __len__(self) -> int:
        return len(self.passes)

    @property
    def kept_width(self) -> int:
        """Values of a token that `TextStates` keeps."""
        return widths(self.passes[-1])[HIDDEN] + 2 * self._projected_width

    def begin(self, texts: Texts, hidden_SD: Tensor) -> TextStates:
        """``hidden_SD`` are the embeddings of the texts' tokens."""
        return TextStates(texts, hidden_SD, self._projected_width)

    def run(self, states: TextStates, first: int, end: int, queries: Queries) -> None:
        """Passes ``first`` to ``end - 1`` for some tokens: for all, where it is more than one pass."""
        num_queries = queries.stop - queries.start
        assert end == first + 1 or num_queries == len(states.hidden_SD), "a pass needs all tokens of the one before"
        if self._chained is not None and states.hidden_SD.dtype == self._chained.dtype:
            self._chained.run(states, first, end, queries)
            return
        for index in range(first, end):
            self._run_one(states, index, queries)

    def _run_one(self, states: TextStates, index: int, queries: Queries) -> None:
        rows = slice(queries.start, queries.stop)
        places = [states.hidden_SD[rows]] * NUM_PLACES
        attend = None
        if index > 0:
            before_SX = states.projected[(index - 1) % 2]
            places[PROJECTED] = before_SX[rows]
            attend = attending_queries(states.texts, queries, before_SX)
        for operation in self.passes[index]:
            operation.run(places, attend or _nothing_to_attend)
        states.hidden_SD[rows] = places[HIDDEN]
        if index < len(self) - 1:
            states.projected[index % 2][rows] = places[PROJECTED]


def _nothing_to_attend(_layer: int, _attention: Attention, _qkv_TX: Tensor) -> Tensor:
    raise AssertionError("the first pass attends to nothing")


def _cut(layers: Sequence[Sequence[Operation]]) -> list[Pass]:
    """Before every attention."""
    passes: list[list[Operation]] = [[]]
    for operation in (operation for layer in layers for operation in layer):
        if isinstance(operation, Attending):
            if operation.kept - {HIDDEN}:
                raise Unsupported("its encoder's layers go on with more than their hidden states after attention")
            passes.append([])
        passes[-1].append(operation)
    return [tuple(each) for each in passes]


class ChainedPasses:
    """Passes as one chain of kernels."""

    def __init__(self, passes: Sequence[Pass], dtype: torch.dtype) -> None:
        """Raises `Unchained`."""
        self.dtype = dtype
        found = widths(operation for each in passes for operation in each)
        self._chain = Chain(dtype, [*found, found[PROJECTED]])
        self._kept: list[abi.Layer] = []
        self._ends = [0]
        for index, each in enumerate(passes):
            for operation in each:
                self._add(operation, index)
            self._ends.append(len(self._chain))

    def run(self, states: TextStates, first: int, end: int, queries: Queries) -> None:
        """As `TextPasses.run`, with hidden states in ``dtype``."""
        kept = (states.hidden_SD, *states.projected)
        given = dict(zip((HIDDEN, PROJECTED, OTHER_PROJECTED), (each[queries.start :] for each in kept), strict=True))
        starts = (queries.starts, queries.key_starts, queries.places)
        texts = abi.Texts(*(array.ctypes.data for array in starts), len(queries))
        num_tokens = queries.stop - queries.start
        self._chain.run_texts(self._ends[first], self._ends[end], num_tokens, given, ctypes.addressof(texts))

    def _add(self, operation: Operation, index: int) -> None:
        if isinstance(operation, Attending):
            place = _projected_place(index - 1)
            self._chain.encoder_attention(self._layer_address(operation.attention), place, ATTENDED)
            return
        if operation.to == PROJECTED:
            operation = replace(operation, to=_projected_place(index))
        add_link(self._chain, operation, self.dtype)

    def _layer_address(self, attention: Attention) -> int:
        spec = attention.spec
        more = (attention.rotary, attention.head_norm, attention.wide_norms, spec.window, spec.softcap)
        if any(each is not None for each in more):
            raise Unchained
        if spec.key_dim != spec.value_dim or spec.key_dim % 16 or spec.key_dim > KERNEL_MAX_HEAD_DIM:
            raise Unchained
        layer = abi.Layer(
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            key_dim=spec.key_dim,
            value_dim=spec.value_dim,
            scaling=spec.scaling,
            is_bfloat16=self.dtype == torch.bfloat16,
            cache_kind=CacheKind.own,
        )
        if spec.bias is not None:
            table_HL = spec.bias.table_HL
            layer.bias, layer.bias_width, layer.bias_middle = table_HL.data_ptr(), table_HL.shape[1], spec.bias.middle
        self._kept.append(layer)
        return ctypes.addressof(layer)


def _projected_place(layer: int) -> int:
    return OTHER_PROJECTED if layer % 2 else PROJECTED


def _chained(passes: Sequence[Pass], dtype: torch.dtype, device: torch.device) -> ChainedPasses | None:
    if not Chain.is_possible(dtype, device) or not kernels.has("encoder_attention"):
        return None
    try:
        return ChainedPasses(passes, dtype)
    except Unchained:
        return None
