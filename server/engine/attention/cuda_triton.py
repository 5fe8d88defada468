"""Sluice's own kernels in Triton: any layer, any device from compute capability 8.0 on, nothing beside torch.

Dimension key
    T       new tokens in the step
    B       sequences of the step
    Hq, H   query heads, key/value heads
    Dk, Dv  width of a key, of a value
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from server.cuda import kernels
from server.engine.attention.cuda_paged import PagedAttention
from server.engine.batch_inputs import BatchInputs
from server.modules.attention import HeadNorm, LayerSpec, Rotary

if TYPE_CHECKING:
    from server.cuda.attention import Rule

TYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 256


class TritonAttention(PagedAttention):
    """One launch for norms, rotation and the cache, one for attention, and one more where sequences are split."""

    name = "triton"

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
        super().__init__(specs, num_blocks, block_size, dtype, device, deterministic=deterministic)
        self._is_poisoned = False
        self._pages = [
            (keys_NPHD[..., : spec.key_dim], values_NPHD[..., : spec.value_dim])
            for spec, (keys_NPHD, values_NPHD) in zip(self.specs, self._pools, strict=True)
        ]
        self._rules = [rule_of(spec) for spec in self.specs]
        self._failed: dict[int, Tensor] = {}
        self._failed_B = torch.zeros(0, dtype=torch.int32, device=device)

    @classmethod
    def problem(
        cls,
        specs: Sequence[LayerSpec],
        block_size: int,  # noqa: ARG003
        dtype: torch.dtype,
        device: torch.device,
    ) -> str | None:
        if dtype not in TYPES:
            return f"it does not compute in {str(dtype).removeprefix('torch.')}"
        widest = max(spec.width for spec in specs)
        if widest > WIDEST:
            return f"heads are {widest} wide, and it takes at most {WIDEST}"
        return kernels.problem(device)

    def poison(self) -> None:
        self._is_poisoned = True
        for pool in self._pools:
            pool.fill_(math.nan)

    def begin(self, inputs: BatchInputs) -> None:
        super().begin(inputs)
        self._mark(torch.zeros(len(inputs.rows), dtype=torch.int32, device=self._device))

    def begin_static(self, inputs: BatchInputs, width: int) -> None:
        super().begin_static(inputs, width)
        num_rows = len(inputs.rows)
        if num_rows not in self._failed:
            self._failed[num_rows] = torch.empty(num_rows, dtype=torch.int32, device=self._device)
        self._mark(self._failed[num_rows].zero_())

    def failed_rows(self) -> list[int]:
        # Where all rows have logits, a failure shows in these: nothing waits for the device.
        return [] if self._failed_T is None else self._failed_B.nonzero()[:, 0].tolist()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> Tensor:
        from server.cuda.place import place

        query_THD, key_THD, value_THD = (dense_heads(x[0].transpose(0, 1)) for x in (query, key, value))
        place(key_THD, value_THD, *self._pages[layer], self._places)
        return self._attended(layer, query_THD, sinks)[None]

    def attend_packed(
        self,
        layer: int,
        qkv_TX: Tensor,
        positions_T: Tensor,
        *,
        rotary: Rotary | None,
        head_norm: HeadNorm | None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        from server.cuda.place import Normed, Turn, place

        query_THD, key_THD, value_THD = self.specs[layer].split(qkv_TX)
        is_changed = rotary is not None or head_norm is not None
        out_THD = self._empty(query_THD, *query_THD.shape) if is_changed else query_THD
        place(
            key_THD,
            value_THD,
            *self._pages[layer],
            self._places,
            query_THD=query_THD if is_changed else None,
            out_THD=out_THD,
            turn=None if rotary is None else Turn(positions_T=positions_T, cos_MR=rotary.cos_PR, sin_MR=rotary.sin_PR),
            normed=None if head_norm is None else Normed(**vars(head_norm)),
        )
        return self._attended(layer, out_THD, sinks).view(len(qkv_TX), -1)

    def _attend(self, spec: LayerSpec, query_THD: Tensor, keys_NPHD: Tensor, values_NPHD: Tensor) -> Tensor:
        raise NotImplementedError("attend and attend_packed start other kernels")

    def _attended(self, layer: int, query_THD: Tensor, sinks: Tensor | None) -> Tensor:
        """``[T, Hq, Dv]`` over what has been placed."""
        from server.cuda.attention import attend

        spec = self.specs[layer]
        out_THD = self._empty(query_THD, len(query_THD), spec.num_heads, spec.value_dim)
        attend(query_THD, *self._pages[layer], self._whom, self._rules[layer], out_THD, sinks=sinks)
        return out_THD

    def _mark(self, failed_B: Tensor) -> None:
        """Set the arguments of the planned step. ``failed_B`` is zero; kernels mark it."""
        from server.cuda.attention import Step
        from server.cuda.place import Places

        host, parts = self.step.host, self.step.parts
        self._failed_B = failed_B
        self._places = Places(slots_T=self.step.write_rows[0], rows_T=parts.rows_T, failed_B=failed_B)
        self._whom = Step(
            tables_BW=parts.tables_BW,
            starts_B1=parts.starts_B1,
            lengths_B=parts.lengths_B,
            order_B=parts.order_B,
            failed_B=failed_B,
            num_chunks=host.num_chunks,
            most_new=host.most_new,
            most_tokens=host.most_tokens,
        )

    def _empty(self, like: Tensor, *shape: int) -> Tensor:
        out = like.new_empty(shape)
        return out.fill_(math.nan) if self._is_poisoned else out


def dense_heads(x_THD: Tensor) -> Tensor:
    """With the places of a head side by side."""
    return x_THD if x_THD.stride(-1) == 1 else x_THD.contiguous()


def rule_of(spec: LayerSpec) -> Rule:
    from server.cuda.attention import Rule

    return Rule(scale=spec.scaling, window=spec.window, softcap=spec.softcap)
