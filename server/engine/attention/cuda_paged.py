"""What the CUDA kernels have in common: one pool of blocks a layer, and a step's tables on the device.

A back end of this family adds one call of its kernel. Whatever a kernel reads is made once a step; where steps are
replayed as a CUDA graph, the same tensors are kept and filled anew before each replay.

Dimension key
    T     new tokens in the step
    B     sequences of the step
    N, P  blocks of a pool, tokens in one
    H, D  heads, width of one
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from server.engine.attention.backend import AttentionBackend
from server.engine.attention.cuda_tables import HostTables, Parts, host_tables, parts_of
from server.engine.batch_inputs import BatchInputs, on_device
from server.modules.attention import LayerSpec

HALF_TYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class StepTables:
    """The tables of a step on the device."""

    host: HostTables
    """In replayed steps: what a kernel is told on the host, which must do for all of them."""
    flat: Tensor
    write_rows: Tensor
    """int64 ``[2, T]``: where new keys and new values go in a pool of ``2 * N * P`` rows."""

    @cached_property
    def parts(self) -> Parts[Tensor]:
        return parts_of(self.flat, self.host.num_sequences, self.host.width)


class PagedAttention(AttentionBackend):
    """Writes to pools ``[2 (keys, values), N, P, H, D]``; the kernel of a subclass attends over them.

    It holds one block more than is asked for: `spare_block`, where the padding of replayed steps may write.
    """

    can_record = True

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
        self.specs = tuple(specs)
        self.spare_block = num_blocks
        self._block_size = block_size
        self.dtype = dtype
        self._device = device
        self._deterministic = deterministic
        self._num_slots = (num_blocks + 1) * block_size
        self._pools = [
            torch.zeros((2, num_blocks + 1, block_size, spec.num_kv_heads, spec.width), dtype=dtype, device=device)
            for spec in self.specs
        ]
        self.kv_cache_bytes = sum(pool.numel() * pool.itemsize for pool in self._pools)
        self._static: dict[tuple[int, int], StepTables] = {}
        self._step: StepTables | None = None
        self._failed_T: Tensor | None = None

    @classmethod
    @abstractmethod
    def problem(
        cls, specs: Sequence[LayerSpec], block_size: int, dtype: torch.dtype, device: torch.device
    ) -> str | None:
        """Why this back end cannot serve such layers here, as the end of a sentence. None if it may."""

    @abstractmethod
    def _attend(self, spec: LayerSpec, query_THD: Tensor, keys_NPHD: Tensor, values_NPHD: Tensor) -> Tensor:
        """Causal attention of the new tokens, ``[T, query heads, D]``; their keys and values are in the pool."""

    def poison(self) -> None:
        """For trials: fill with NaN what kernels must not read, and what they must write."""

    def _plan(self, host: HostTables, *, is_static: bool) -> None:
        """What a kernel plans on the host for a step."""

    def begin(self, inputs: BatchInputs) -> None:
        host = host_tables(inputs, self._block_size)
        self._step = StepTables(
            host=host,
            flat=on_device(host.flat, self._device),
            write_rows=torch.stack((inputs.slots_T, inputs.slots_T + self._num_slots)),
        )
        # Rows with logits show a failure in these.
        is_asked = any(row.num_logits == 0 for row in inputs.rows)
        self._failed_T = torch.zeros(host.num_tokens, device=self._device) if is_asked else None
        self._plan(host, is_static=False)

    def begin_static(self, inputs: BatchInputs, width: int) -> None:
        host = host_tables(inputs, self._block_size, width)
        assert host.most_new == 1
        step = self._static.get((host.num_sequences, width))
        if step is None:
            step = self._static[host.num_sequences, width] = StepTables(
                host=dataclasses.replace(host, most_tokens=width * self._block_size),
                flat=torch.empty(host.flat.shape, dtype=torch.int32, device=self._device),
                write_rows=torch.empty((2, host.num_tokens), dtype=torch.int64, device=self._device),
            )
        step.flat.copy_(torch.from_numpy(host.flat), non_blocking=True)
        torch.stack((inputs.slots_T, inputs.slots_T + self._num_slots), out=step.write_rows)
        self._step = step
        self._failed_T = None
        self._plan(host, is_static=True)

    @property
    def step(self) -> StepTables:
        assert self._step is not None
        return self._step

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> Tensor:
        assert sinks is None
        failed_T = self._write(layer, key[0].transpose(0, 1), value[0].transpose(0, 1))
        if self._failed_T is not None:
            self._failed_T += failed_T
        keys_NPHD, values_NPHD = self._pools[layer]
        out_THD = self._attend(self.specs[layer], query[0].transpose(0, 1), keys_NPHD, values_NPHD)
        return (out_THD + failed_T[:, None, None].to(out_THD.dtype))[None]

    def _write(self, layer: int, key_THD: Tensor, value_THD: Tensor) -> Tensor:
        """Write what is finite. Returns NaN for all tokens of a row with new values that are not, 0 for others.

        The cache is given zeros in their place, for a masked place still enters a product as ``0 * value``; a later
        step would not know.
        """
        new = torch.stack((key_THD, value_THD))
        failed_T = new.sum((0, 2, 3), dtype=torch.float32) * 0.0
        rows = self._pools[layer].view(2 * self._num_slots, -1)
        rows.index_copy_(0, self.step.write_rows.view(-1), new.nan_to_num_(0.0, 0.0, 0.0).view(-1, rows.shape[1]))
        if self.step.host.most_new == 1:
            return failed_T
        rows_T = self.step.parts.rows_T
        return failed_T.new_zeros(self.step.host.num_sequences).index_add_(0, rows_T, failed_T)[rows_T]

    def failed_rows(self) -> list[int]:
        if self._failed_T is None:
            return []
        failed = self._failed_T.isnan().cpu().numpy()
        return np.unique(self.step.host.parts.rows_T[failed]).tolist()  # type: ignore[no-any-return]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        sources, destinations = on_device(np.array(pairs, dtype=np.int64).reshape(-1, 2), self._device).unbind(1)
        for pool in self._pools:
            pool[:, destinations] = pool[:, sources]

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        cleared = on_device(np.array(blocks, dtype=np.int64), self._device)
        for pool in self._pools:
            pool.index_fill_(1, cleared, 0.0)


def window_of(spec: LayerSpec) -> tuple[int, int]:
    """How far before and behind itself a token looks, as flash attention takes it; -1 is without end."""
    return (-1 if spec.window is None else spec.window - 1, 0)


def layer_problem(
    specs: Sequence[LayerSpec], dtype: torch.dtype, *, head_dims: Container[int], softcap: bool
) -> str | None:
    """What a kernel with ``head_dims``, with or without a ``softcap``, cannot do, as the end of a sentence."""
    if dtype not in HALF_TYPES:
        return f"it does not compute in {str(dtype).removeprefix('torch.')}"
    for spec in specs:
        if spec.has_sinks:
            return "it has no sinks"
        if spec.softcap is not None and not softcap:
            return "it has no softcap"
        if spec.key_dim != spec.value_dim:
            return f"keys are {spec.key_dim} wide and values {spec.value_dim}"
        if spec.key_dim not in head_dims:
            return f"it has no heads that are {spec.key_dim} wide"
    return None
