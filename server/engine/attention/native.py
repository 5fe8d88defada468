"""Paged attention by our own CPU kernel.

Every row's result depends on that row alone, to the last bit: whatever the batch, the chunks and the number of threads.

Dimension key
    N  blocks of the cache
    W  bytes of a block in one layer, all heads
    B  rows of the step
    T  new tokens in the step
    H  heads of queries, keys or values
    D  width of a head
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from server.engine.attention.backend import AttentionBackend, SourceRow
from server.engine.attention.native_plan import Plan, merged
from server.engine.batch_inputs import BatchInputs
from server.engine.zeroed import take_pages, zeroed
from server.modules.attention import HeadNorm, LayerSpec, Rotary
from server.native import kernels
from server.native.abi import BLOCK_SIZE, MAX_HEAD_DIM, Call, Layer
from server.native.kernels import address
from server.number_types import CACHE_TYPES, KvDtype

DIM_STEP = 16
"""Widths of keys and values are multiples of this."""


class NativeAttention(AttentionBackend):
    """Keys and values lie in the order in which the kernel multiplies them; see `Place` in attention_heads.h.

    With ``kv_dtype`` int8, each token has one scale for its key and one for its value, in each head. One scale for a
    block would take less memory, but a later token could then change what earlier ones have stored, and results would
    depend on the chunks in which the block was filled.
    """

    name = "native"
    is_row_invariant = True
    can_chain = True
    can_cross = True

    def __init__(
        self,
        specs: Sequence[LayerSpec],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        kv_dtype: KvDtype = "auto",
    ) -> None:
        problem = self.obstacle(specs, block_size, dtype, device)
        module = kernels.module()
        assert problem is None and module is not None, problem
        self.specs = tuple(specs)
        self._attend = module.attend
        self.dtype = dtype
        self._pools_NW = [
            zeroed((num_blocks, block_bytes(spec, dtype, kv_dtype)), torch.uint8, device) for spec in self.specs
        ]
        self._last_step_s = 0.0
        take_pages(self._pools_NW, lambda: self._last_step_s)
        self._layers = [_layer(*each, dtype, kv_dtype) for each in zip(self.specs, self._pools_NW, strict=True)]
        self._cross_layers = [
            _layer(_cross_spec(spec), pool_NW, dtype, kv_dtype)
            for spec, pool_NW in zip(self.specs, self._pools_NW, strict=True)
        ]
        self._plan, self._source_plan, self._cross_plan = Plan(), Plan(), Plan()
        self.step_address, self.cross_address = self._plan.address, self._cross_plan.address
        self._kept_calls: list[Call] = []
        self.kv_cache_bytes = sum(pool_NW.numel() for pool_NW in self._pools_NW)

    @staticmethod
    def obstacle(specs: Sequence[LayerSpec], block_size: int, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why these layers cannot be attended to here, as the end of a sentence; None where they can."""
        if device.type != "cpu" or not hasattr(kernels.module(), "attend"):
            return "there are no kernels for it"
        if block_size != BLOCK_SIZE:
            return f"block_size is {block_size} and not {BLOCK_SIZE}"
        if dtype not in (torch.float32, torch.bfloat16):
            return f"its numbers are {dtype}"
        for width in (width for spec in specs for width in (spec.key_dim, spec.value_dim)):
            if width % DIM_STEP or width > MAX_HEAD_DIM:
                return f"heads of width {width} are no multiple of {DIM_STEP} up to {MAX_HEAD_DIM}"
        return None

    def begin(self, inputs: BatchInputs) -> None:
        self._last_step_s = time.monotonic()
        rows = [(len(row.token_ids), row.num_computed, 0) for row in inputs.rows]
        self._plan.fill(rows, [row.block_table for row in inputs.rows])

    def begin_sources(self, sources: Sequence[SourceRow]) -> None:
        self._last_step_s = time.monotonic()
        rows = [(row.num_tokens, row.first, 0) for row in sources]
        self._source_plan.fill(rows, [row.block_table for row in sources])

    def begin_cross(self, rows: Sequence[SourceRow]) -> None:
        together = merged(rows)
        filled = [(row.num_tokens, 0, row.num_source) for row in together]
        self._cross_plan.fill(filled, [row.block_table for row in together])

    def write_source(self, layer: int, kv_SX: Tensor) -> None:
        assert len(kv_SX) == self._source_plan.num_tokens, "these are not the tokens of the sources"
        kv_SX = self._dense(kv_SX)
        spec, call = self.specs[layer], Call()
        call.key = kv_SX.data_ptr()
        call.value = call.key + self.dtype.itemsize * spec.num_kv_heads * spec.key_dim
        call.key_head, call.value_head = spec.key_dim, spec.value_dim
        call.key_token = call.value_token = kv_SX.stride(0)
        self._attend(ctypes.addressof(self._layers[layer]), self._source_plan.address, ctypes.addressof(call))

    def failed_sources(self) -> list[int]:
        return self._source_plan.failed()

    def attend_source(self, layer: int, query_TX: Tensor) -> Tensor:
        assert len(query_TX) == self._cross_plan.num_tokens, "these are not the tokens of the step"
        query_TX = self._dense(query_TX)
        spec = self.specs[layer]
        call = self._cross_call(layer, query_TX.stride(0))
        out_TX = query_TX.new_empty(len(query_TX), spec.attended_width)
        call.query, call.out = query_TX.data_ptr(), out_TX.data_ptr()
        self._attend(ctypes.addressof(self._cross_layers[layer]), self.cross_address, ctypes.addressof(call))
        return out_TX

    def cross_call(self, layer: int) -> tuple[int, int]:
        spec = self.specs[layer]
        call = self._cross_call(layer, spec.num_heads * spec.key_dim)
        self._kept_calls.append(call)
        return ctypes.addressof(self._cross_layers[layer]), ctypes.addressof(call)

    def _cross_call(self, layer: int, width: int) -> Call:
        """All but the step's own addresses. ``width`` is that of a token's queries."""
        call = Call()
        call.query_head, call.query_token = self.specs[layer].key_dim, width
        return call

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> Tensor:
        assert query.shape[2] == self._plan.num_tokens, "these are not the tokens of the step"
        query, key, value = self._dense(query), self._dense(key), self._dense(value)
        call = Call()
        call.query, call.key, call.value = query.data_ptr(), key.data_ptr(), value.data_ptr()
        _, call.query_head, call.query_token, _ = query.stride()
        _, call.key_head, call.key_token, _ = key.stride()
        _, call.value_head, call.value_token, _ = value.stride()
        spec = self.specs[layer]
        out = query.new_empty(1, query.shape[2], spec.num_heads, spec.value_dim)
        self._run(layer, call, out, sinks)
        return out

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
        assert len(qkv_TX) == self._plan.num_tokens, "these are not the tokens of the step"
        qkv_TX = self._dense(qkv_TX)
        spec, size = self.specs[layer], self.dtype.itemsize
        call = self._packed(layer, qkv_TX.stride(0), rotary, head_norm)
        call.query = qkv_TX.data_ptr()
        call.key = call.query + size * spec.num_heads * spec.key_dim
        call.value = call.key + size * spec.num_kv_heads * spec.key_dim
        call.positions = positions_T.data_ptr()
        out_TX = qkv_TX.new_empty(qkv_TX.shape[0], spec.num_heads * spec.value_dim)
        self._run(layer, call, out_TX, sinks)
        return out_TX

    def packed_call(self, layer: int, width: int, rotary: Rotary | None, head_norm: HeadNorm | None) -> tuple[int, int]:
        call = self._packed(layer, width, rotary, head_norm)
        self._kept_calls.append(call)
        return ctypes.addressof(self._layers[layer]), ctypes.addressof(call)

    def _packed(self, layer: int, width: int, rotary: Rotary | None, head_norm: HeadNorm | None) -> Call:
        """All but the step's own addresses."""
        spec, call = self.specs[layer], Call()
        call.query_head, call.key_head, call.value_head = spec.key_dim, spec.key_dim, spec.value_dim
        call.query_token = call.key_token = call.value_token = width
        if rotary is not None:
            call.cos, call.sin = rotary.cos_PR.data_ptr(), rotary.sin_PR.data_ptr()
            call.num_rotated = rotary.cos_PR.shape[1]
        if head_norm is not None:
            call.query_norm = head_norm.query_weight_D.data_ptr()
            call.key_norm = head_norm.key_weight_D.data_ptr()
            call.eps = head_norm.eps
        return call

    def failed_rows(self) -> list[int]:
        return self._plan.failed()

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        sources, destinations = torch.from_numpy(np.array(pairs, dtype=np.int64).reshape(-1, 2)).unbind(1)
        for pool_NW in self._pools_NW:
            # Single bytes would take five times as long.
            words = pool_NW.view(torch.int64)
            words.index_copy_(0, destinations, words.index_select(0, sources))

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        cleared = torch.from_numpy(np.array(blocks, dtype=np.int64))
        for pool_NW in self._pools_NW:
            pool_NW.index_fill_(0, cleared, 0)

    def _run(self, layer: int, call: Call, out: Tensor, sinks: Tensor | None) -> None:
        wide_sinks = None if sinks is None else sinks.float().contiguous()
        call.out, call.sinks = out.data_ptr(), address(wide_sinks)
        self._attend(ctypes.addressof(self._layers[layer]), self.step_address, ctypes.addressof(call))

    def _dense(self, x: Tensor) -> Tensor:
        """With the last dimension's values side by side, and in the cache's dtype."""
        if x.dtype != self.dtype:
            x = x.to(self.dtype)
        return x if x.stride(-1) == 1 else x.contiguous()


def block_bytes(spec: LayerSpec, dtype: torch.dtype, kv_dtype: KvDtype = "auto") -> int:
    """Of one layer. Keys and values take no more than their own widths."""
    widths, cache_type = (spec.key_dim, spec.value_dim), CACHE_TYPES[kv_dtype]
    token_bytes = sum(cache_type.vector_bytes(width, dtype.itemsize) for width in widths)
    return spec.num_kv_heads * BLOCK_SIZE * token_bytes


def _layer(spec: LayerSpec, pool_NW: Tensor, dtype: torch.dtype, kv_dtype: KvDtype) -> Layer:
    bias = spec.bias
    return Layer(
        address(pool_NW),
        spec.num_heads,
        spec.num_kv_heads,
        spec.key_dim,
        spec.value_dim,
        spec.window or 0,
        spec.scaling,
        spec.softcap or 0.0,
        dtype == torch.bfloat16,
        CACHE_TYPES[kv_dtype].kind,
        *((0, 0, 0) if bias is None else (address(bias.table_HL), bias.table_HL.shape[1], bias.middle)),
    )


def _cross_spec(spec: LayerSpec) -> LayerSpec:
    """Of attention to a source by the same heads: every token sees all of it."""
    return replace(spec, window=None, softcap=None, bias=None)
