"""Sequences whose keys and values are known, driven through an attention back end, and what attention in float64 says.

Dimension key: T new tokens of a step, C tokens of a sequence, Hq and H heads, Dk and Dv widths of key and value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor

from server.engine import batch_inputs
from server.engine.attention.backend import AttentionBackend
from server.engine.batch_inputs import BatchInputs, Row
from server.modules.attention import LayerSpec

CPU = torch.device("cpu")


def layer_spec(
    heads: tuple[int, int] = (4, 2),
    dims: tuple[int, int] = (32, 32),
    *,
    window: int | None = None,
    softcap: float | None = None,
    has_sinks: bool = False,
) -> LayerSpec:
    return LayerSpec(
        num_heads=heads[0],
        num_kv_heads=heads[1],
        key_dim=dims[0],
        value_dim=dims[1],
        scaling=dims[0] ** -0.5,
        window=window,
        softcap=softcap,
        has_sinks=has_sinks,
    )


@dataclass
class Told:
    """A sequence with every query, key and value that it will ever have, ``[C, heads, width]``."""

    query: Tensor
    key: Tensor
    value: Tensor
    table: list[int]
    num_computed: int = 0

    def __len__(self) -> int:
        return len(self.query)


class Scene:
    """One layer of a back end and the sequences in it, in scattered blocks."""

    def __init__(self, backend: AttentionBackend, num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
        self.backend = backend
        self.spec = backend.specs[0]
        self._block_size, self._dtype = block_size, dtype
        self.free = [block for offset in (2, 0, 1) for block in range(offset, num_blocks, 3)]
        self.sinks = torch.linspace(-1.0, 2.0, self.spec.num_heads) if self.spec.has_sinks else None
        self._keys = count()

    def sequence(self, length: int, seed: int) -> Told:
        generator = torch.Generator().manual_seed(seed)
        spec = self.spec

        def draw(heads: int, width: int, spread: float = 1.0) -> Tensor:
            return (spread * torch.randn(length, heads, width, generator=generator)).to(self._dtype)

        return Told(
            query=draw(spec.num_heads, spec.key_dim, 2.0),
            key=draw(spec.num_kv_heads, spec.key_dim),
            value=draw(spec.num_kv_heads, spec.value_dim),
            table=[self.free.pop() for _ in range(-(-length // self._block_size))],
        )

    def again(self, told: Told) -> Told:
        """The sequence before its first token, in blocks that still hold what was written to them last."""
        self.free[:0] = told.table
        return replace(told, table=[self.free.pop() for _ in told.table], num_computed=0)

    def begin(self, told: Sequence[tuple[Told, int]], *, num_logits: int = 1) -> BatchInputs:
        """Plan a step of so many further tokens of each sequence."""
        rows = [
            Row(
                key=next(self._keys),
                token_ids=[0] * num_new,
                num_computed=seq.num_computed,
                block_table=seq.table,
                num_logits=num_logits,
            )
            for seq, num_new in told
        ]
        inputs = batch_inputs.build(rows, self._block_size, CPU)
        self.backend.begin(inputs)
        for seq, num_new in told:
            seq.num_computed += num_new
        return inputs

    def step(self, told: Sequence[tuple[Told, int]], *, num_logits: int = 1) -> list[Tensor]:
        """Compute so many further tokens of each sequence; returns each one's ``[tokens, Hq, Dv]``."""
        self.begin(told, num_logits=num_logits)
        query, key, value = (
            torch.cat([getattr(seq, name)[seq.num_computed - num_new : seq.num_computed] for seq, num_new in told])
            for name in ("query", "key", "value")
        )
        out = self.backend.attend(0, *(x.transpose(0, 1)[None] for x in (query, key, value)), self.sinks)
        return list(out[0].split([num_new for _, num_new in told]))

    def run(self, told: Told, chunks: Sequence[int]) -> Tensor:
        return torch.cat([self.step([(told, chunk)])[0] for chunk in chunks])

    def expected(self, told: Told, num_tokens: int) -> Tensor:
        """Attention of the first tokens in float64."""
        return dense_attention(
            self.spec, told.query[:num_tokens], told.key[:num_tokens], told.value[:num_tokens], self.sinks
        )


def dense_attention(spec: LayerSpec, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> Tensor:
    """``[C, Hq, Dv]`` in float64, every token over all tokens that it sees."""
    group = spec.num_heads // spec.num_kv_heads
    key, value = (x.double().repeat_interleave(group, dim=1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.double(), key) * spec.scaling
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    places = torch.arange(len(query))
    hidden = places[None, :] > places[:, None]
    if spec.window is not None:
        hidden |= places[None, :] <= places[:, None] - spec.window
    scores = scores.masked_fill(hidden, -math.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks.double()[:, None, None].expand(-1, len(query), 1)), dim=-1)
    weights = scores.softmax(-1)[..., : len(query)]
    return torch.einsum("hqk,khd->qhd", weights, value)
