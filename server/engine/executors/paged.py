"""What the executors over a paged cache have in common: rows become tensors, and a back end holds all that is kept."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from server.engine import batch_inputs
from server.engine.attention.backend import AttentionBackend
from server.engine.batch_inputs import BatchInputs, Row
from server.engine.executors.virtual import behind_given, num_given, padded
from server.engine.model_runner import ModelRunner
from server.native.adapted import Runs, adapting


class PagedRunner(ModelRunner):
    """Plans a step on the host, then `compute`, which never reads from the device."""

    can_reuse_blocks = True

    has_rotary_tables = False
    """Whether factors of all positions are kept in tables: then no step computes them from its sequences' lengths."""

    def __init__(
        self,
        backend: AttentionBackend,
        device: torch.device,
        dtype: torch.dtype,
        *,
        num_blocks: int,
        block_size: int,
        vocab_size: int,
    ) -> None:
        self.backend = backend
        self.attention = backend.name
        self.device = device
        self.dtype = dtype
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.kv_cache_bytes = backend.kv_cache_bytes
        self.kv_shapes = [(spec.num_kv_heads, spec.key_dim, spec.value_dim) for spec in backend.specs]

    def forward(self, rows: Sequence[Row]) -> Tensor:
        preambles = [row.context.preamble for row in rows]
        if any(preambles) and any(map(num_given, rows)):
            return self._forward_behind_given(rows)
        inputs = batch_inputs.build(rows, self.block_size, self.device)
        self.backend.begin(inputs)
        with adapting(adapted_rows(inputs)):
            logits = self.compute(inputs)
        asks_none = any(row.num_logits == 0 for row in rows)
        failed = self.backend.failed_rows() if asks_none else []
        self.failed_rows = [i for i in failed if rows[i].num_logits == 0]
        return logits

    def _forward_behind_given(self, rows: Sequence[Row]) -> Tensor:
        """A step in which keys and values of virtual tokens are written first. They have no logits: zeros."""
        for row in rows:
            if number := num_given(row):
                self._write(row, number)
        left = [(i, row) for i, row in enumerate(map(behind_given, rows)) if len(row.token_ids)]
        computed = (
            self.forward([row for _, row in left]) if left else torch.zeros(0, self.vocab_size, device=self.device)
        )
        self.failed_rows = [left[i][0] for i in self.failed_rows] if left else []
        parts = dict(zip([i for i, _ in left], torch.split(computed, [row.num_logits for _, row in left]), strict=True))
        none = computed.new_zeros(0, self.vocab_size)
        return torch.cat([padded(parts.get(i, none), row.num_logits) for i, row in enumerate(rows)])

    def _write(self, row: Row, number: int) -> None:
        """The first ``number`` of the row's tokens: attention writes what it is given, and its results are left."""
        preamble = row.context.preamble
        assert preamble is not None
        part = slice(row.num_computed, row.num_computed + number)
        writing = Row(
            key=row.key,
            token_ids=np.zeros(number, dtype=np.int64),
            num_computed=row.num_computed,
            block_table=row.block_table,
            num_logits=0,
        )
        self.backend.begin(batch_inputs.build([writing], self.block_size, self.device))
        for layer, (keys_HND, values_HND) in enumerate(preamble.layers):
            spec = self.backend.specs[layer]
            query = keys_HND.new_zeros(1, spec.num_heads, number, spec.key_dim)
            sinks = keys_HND.new_zeros(spec.num_heads) if spec.has_sinks else None
            self.backend.attend(
                layer, query, keys_HND[None, :, part].contiguous(), values_HND[None, :, part].contiguous(), sinks
            )

    @abstractmethod
    def compute(self, inputs: BatchInputs) -> Tensor:
        """Float32 logits of ``wanted_R``. The back end has begun the step; work for the device and nothing else."""

    def release(self, key: int) -> None:
        """Nothing is held outside blocks."""

    def fork(self, parent_key: int, child_key: int) -> None:
        """The child has its blocks."""

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.backend.copy_blocks(pairs)

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        self.backend.clear_blocks(blocks)


def adapted_rows(inputs: BatchInputs) -> dict[int, Runs] | None:
    """The adapters of all tokens and of those with logits, by their numbers; None where no row has one.

    Where both numbers are the same, the tokens are the same too.
    """
    rows = inputs.rows
    if all(row.context.adapter is None for row in rows):
        return None
    of_tokens = Runs.of([(row.context.adapter, len(row.token_ids)) for row in rows])
    of_logits = Runs.of([(row.context.adapter, row.num_logits) for row in rows])
    # Without logits, the generic executor computes one row that it leaves out.
    return {1: Runs.of([]), len(inputs.wanted_R): of_logits, len(inputs.token_ids_T): of_tokens}
