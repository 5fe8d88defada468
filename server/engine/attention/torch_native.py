"""Paged attention out of torch's own operations: gather the blocks, then ordinary dense attention.

Works on any device and is the oracle for faster back ends. Rows with one new token are attended together, in groups
of similar length; rows with more, one by one.

Dimension key
    T  new tokens in the step
    B  sequences of a group
    C  places of a gathered context, a whole number of blocks
    Q  new tokens of one sequence
    H  key/value heads
    G  query heads per key/value head
    D  width of keys or values
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from server.engine.attention.backend import AttentionBackend, SourceRow
from server.engine.attention.spans import Span, grouped, spans_of
from server.engine.attention.torch_scores import attend_in_steps, causal_bias
from server.engine.attention.torch_sources import Sources
from server.engine.batch_inputs import BatchInputs, on_device
from server.engine.kv_cache import KvCache
from server.modules.attention import LayerSpec

MAX_GATHER_BYTES = 64 * 1024 * 1024
"""A group's keys and values of one layer lie in one scratch buffer of about this size."""


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Sequences attended together, each with ``Q`` new tokens."""

    tokens: Tensor | None
    """Indices into T; None where the group is the whole step, in order."""
    span: Span | None
    """Set for a single sequence with several new tokens."""
    gather_rows: Tensor | None
    """None where nothing is cached yet: the new keys and values are the whole context."""
    num_sequences: int
    num_places: int
    bias_BQC: Tensor | None
    """0 where a new token may look, -inf elsewhere, in the model's dtype. None is plain causal."""
    distances_BQC: Tensor | None = None
    """Of the places from the new tokens; None where no head adds a bias by them."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    write_rows: Tensor
    groups: list[_Group]


class TorchNativeAttention(AttentionBackend):
    """Index-select of blocks, then matrix products or torch's scaled_dot_product_attention."""

    name = "torch"
    can_cross = True

    def __init__(
        self,
        specs: Sequence[LayerSpec],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        deterministic: bool = False,
    ) -> None:
        """``deterministic`` attends every row by itself: no shape depends on another row."""
        self.specs = tuple(specs)
        self._deterministic = deterministic
        self._cache = KvCache(specs, num_blocks, block_size, dtype, device)
        self._block_size = block_size
        self.dtype = dtype
        self._device = device
        self._scratch = torch.empty(0, dtype=dtype, device=device)
        self._inputs: BatchInputs | None = None
        self._plans: dict[tuple[int, int | None, bool], _Plan] = {}
        self._failed_T: Tensor | None = None
        self._sources = Sources(self._cache, device)
        self.kv_cache_bytes = self._cache.num_bytes

    def begin(self, inputs: BatchInputs) -> None:
        self._inputs = inputs
        self._plans = {}
        # Rows with logits show it in these, and a pass over all keys and values is saved.
        is_asked = any(row.num_logits == 0 for row in inputs.rows)
        self._failed_T = torch.zeros_like(inputs.slots_T, dtype=torch.bool) if is_asked else None

    def failed_rows(self) -> list[int]:
        if self._failed_T is None or self._inputs is None:
            return []
        stops = np.cumsum([len(row.token_ids) for row in self._inputs.rows])
        tokens = self._failed_T.nonzero()[:, 0].cpu().numpy()
        rows: list[int] = np.unique(np.searchsorted(stops, tokens, side="right")).tolist()
        return rows

    def begin_sources(self, sources: Sequence[SourceRow]) -> None:
        self._sources.begin_writing(sources)

    def write_source(self, layer: int, kv_SX: Tensor) -> None:
        self._sources.write(layer, kv_SX)

    def failed_sources(self) -> list[int]:
        return self._sources.failed()

    def begin_cross(self, rows: Sequence[SourceRow]) -> None:
        self._sources.begin_reading(rows)

    def attend_source(self, layer: int, query_TX: Tensor) -> Tensor:
        return self._sources.attend(layer, query_TX)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._cache.copy_blocks(pairs)

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        self._cache.clear_blocks(blocks)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> Tensor:
        spec = self.specs[layer]
        kind = (spec.num_kv_heads, spec.window, spec.bias is not None)
        plan = self._plans.get(kind)
        if plan is None:
            plan = self._plans[kind] = self._plan(spec)
        self._cache.write(layer, key[0], value[0], plan.write_rows)
        if self._failed_T is not None:
            for new in (key[0], value[0]):
                self._failed_T |= ~new.isfinite().all(-1).all(0)
        query_THD = query[0].transpose(0, 1)
        if len(plan.groups) == 1:
            return self._attend_group(layer, plan.groups[0], query_THD, key, value, sinks)[None]
        out_THD = query.new_empty(query.shape[2], spec.num_heads, spec.value_dim)
        for group in plan.groups:
            out = self._attend_group(layer, group, query_THD, key, value, sinks)
            if group.span is not None:
                out_THD[group.span.start : group.span.start + group.span.num_new] = out
            else:
                assert group.tokens is not None
                out_THD.index_copy_(0, group.tokens, out)
        return out_THD[None]

    def _attend_group(
        self, layer: int, group: _Group, query_THD: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None
    ) -> Tensor:
        """Returns the group's ``[tokens, query heads, value_dim]``."""
        spec = self.specs[layer]
        if group.span is not None:
            part = slice(group.span.start, group.span.start + group.span.num_new)
            query_THD, key, value = query_THD[part], key[:, :, part], value[:, :, part]
        elif group.tokens is not None:
            query_THD = query_THD[group.tokens]
        new_key, new_value = key, value
        if group.gather_rows is not None:
            key, value = self._gather(layer, group)
        B, Q = group.num_sequences, query_THD.shape[0] // group.num_sequences
        query_BHQD = query_THD.view(B, Q, spec.num_heads, spec.key_dim).transpose(1, 2)
        if spec.softcap is not None or sinks is not None or spec.bias is not None:
            hidden_BQC = self._hidden(group, Q)
            out_BHQD = attend_in_steps(spec, query_BHQD, key, value, hidden_BQC, sinks, group.distances_BQC)
        elif Q == 1 and group.bias_BQC is not None:
            return self._decode(spec, query_BHQD, key, value, group.bias_BQC)
        else:
            out_BHQD = scaled_dot_product_attention(
                query_BHQD,
                key,
                value,
                attn_mask=None if group.bias_BQC is None else group.bias_BQC[:, None],
                is_causal=group.bias_BQC is None,
                scale=spec.scaling,
                enable_gqa=spec.num_heads != spec.num_kv_heads,
            )
        if group.span is not None:
            # The cache was given zeros in their place, and a later chunk would not know.
            is_finite = new_key.isfinite().all() & new_value.isfinite().all()
            out_BHQD = out_BHQD.masked_fill(~is_finite, math.nan)
        return out_BHQD.transpose(1, 2).reshape(B * Q, spec.num_heads, spec.value_dim)

    def _gather(self, layer: int, group: _Group) -> tuple[Tensor, Tensor]:
        """Cached keys and values ``[B, H, C, D]`` of a group; valid until the next gather."""
        spec = self.specs[layer]
        assert group.gather_rows is not None
        shape = (group.gather_rows.shape[0], self._block_size * spec.width)
        if self._scratch.numel() < math.prod(shape):
            self._scratch = torch.empty(math.prod(shape), dtype=self.dtype, device=self._device)
        kv = self._cache.gather(layer, group.gather_rows, out=self._scratch[: math.prod(shape)].view(shape))
        keys, values = kv.view(2, group.num_sequences, spec.num_kv_heads, group.num_places, spec.width)
        return keys[..., : spec.key_dim], values[..., : spec.value_dim]

    def _decode(self, spec: LayerSpec, query_BHQD: Tensor, key: Tensor, value: Tensor, bias_BQC: Tensor) -> Tensor:
        """One new token a sequence: the query heads of a key/value head are its rows, so keys are read once."""
        B, H, C = key.shape[0], spec.num_kv_heads, key.shape[2]
        G = spec.num_heads // H
        if self._device.type != "cpu":
            grouped = query_BHQD.reshape(B, H, G, spec.key_dim)
            out = scaled_dot_product_attention(
                grouped, key, value, attn_mask=bias_BQC[:, None].expand(B, 1, G, C), scale=spec.scaling
            )
            return out.reshape(B, spec.num_heads, spec.value_dim)
        # Two to three times as fast as torch's CPU flash kernel, which is made for long queries.
        query = query_BHQD.reshape(B * H, G, spec.key_dim)
        bias = bias_BQC.expand(B, H, C).reshape(B * H, 1, C)
        scores = torch.baddbmm(bias, query, key.flatten(0, 1).transpose(1, 2), alpha=spec.scaling)
        out = torch.bmm(scores.softmax(-1), value.flatten(0, 1))
        return out.view(B, spec.num_heads, spec.value_dim)

    def _hidden(self, group: _Group, num_new: int) -> Tensor:
        if group.bias_BQC is not None:
            return group.bias_BQC
        return causal_bias(num_new, num_new, 0, None, self.dtype, self._device)

    def _plan(self, spec: LayerSpec) -> _Plan:
        assert self._inputs is not None
        spans = spans_of(self._inputs, spec.window, self._block_size)
        most_blocks = max(1, MAX_GATHER_BYTES // spec.block_bytes(self._block_size, self.dtype))
        single = [span for span in spans if span.num_new == 1]
        if self._deterministic:
            decode_groups = [[span] for span in single]
        else:
            decode_groups = grouped(single, most_blocks, self._device.type)
        groups = [self._decode_group(spec, chosen, len(spans)) for chosen in decode_groups]
        groups += [self._prefill_group(spec, span) for span in spans if span.num_new > 1]
        return _Plan(write_rows=self._cache.write_rows(self._inputs.slots_T, spec.num_kv_heads), groups=groups)

    def _decode_group(self, spec: LayerSpec, spans: list[Span], num_rows: int) -> _Group:
        num_blocks = max(len(span.blocks) for span in spans)
        tables = np.empty((len(spans), num_blocks), dtype=np.int64)
        for row, span in zip(tables, spans, strict=True):
            row[: len(span.blocks)] = span.blocks
            # Padding repeats a block of the sequence's own: whatever another one wrote cannot reach it.
            row[len(span.blocks) :] = span.blocks[-1]
        limits = np.array([(span.num_computed, span.first_block * self._block_size) for span in spans])
        last_B, offset_B = on_device(limits, self._device).unbind(1)
        positions_BC = torch.arange(num_blocks * self._block_size, device=self._device) + offset_B[:, None]
        hidden = positions_BC > last_B[:, None]
        if spec.window is not None:
            hidden |= positions_BC <= (last_B - spec.window)[:, None]
        bias = torch.zeros(hidden.shape, dtype=self.dtype, device=self._device).masked_fill_(hidden, -math.inf)
        starts = [span.start for span in spans]
        whole = len(spans) == num_rows and starts == list(range(num_rows))
        is_biased = spec.bias is not None
        return _Group(
            distances_BQC=(positions_BC - last_B[:, None])[:, None] if is_biased else None,
            tokens=None if whole else on_device(np.array(starts), self._device),
            span=None,
            gather_rows=self._cache.gather_rows(on_device(tables, self._device), spec.num_kv_heads),
            num_sequences=len(spans),
            num_places=num_blocks * self._block_size,
            bias_BQC=bias[:, None],
        )

    def _prefill_group(self, spec: LayerSpec, span: Span) -> _Group:
        if span.num_computed == 0:
            windowed = spec.window is not None and span.num_new > spec.window
            bias = (
                causal_bias(span.num_new, span.num_new, 0, spec.window, self.dtype, self._device) if windowed else None
            )
            return _Group(
                distances_BQC=self._distances(spec, span.num_new, span.num_new, 0),
                tokens=None,
                span=span,
                gather_rows=None,
                num_sequences=1,
                num_places=span.num_new,
                bias_BQC=bias,
            )
        num_places = len(span.blocks) * self._block_size
        offset = span.num_computed - span.first_block * self._block_size
        return _Group(
            distances_BQC=self._distances(spec, span.num_new, num_places, offset),
            tokens=None,
            span=span,
            gather_rows=self._cache.gather_rows(on_device(span.blocks[None], self._device), spec.num_kv_heads),
            num_sequences=1,
            num_places=num_places,
            bias_BQC=causal_bias(span.num_new, num_places, offset, spec.window, self.dtype, self._device),
        )

    def _distances(self, spec: LayerSpec, num_new: int, num_places: int, offset: int) -> Tensor | None:
        """``[1, Q, C]`` for new tokens at places ``offset``, ``offset + 1``, ..."""
        if spec.bias is None:
            return None
        new_Q1 = torch.arange(offset, offset + num_new, device=self._device)[:, None]
        return (torch.arange(num_places, device=self._device) - new_Q1)[None]
