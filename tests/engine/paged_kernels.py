"""The paged kernels of torch, flash-attn and flashinfer, with their signatures, as loops over blocks.

Each takes what the real one takes and refuses what it refuses. Places that no sequence holds are never read: tests fill
them with NaN.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine.attention import cuda_flashinfer, cuda_varlen


@torch.library.custom_op("sluice_tests::attend_pages", mutates_args=())
def attend_pages(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    starts: Tensor,
    pages: Tensor,
    page_starts: Tensor,
    lengths: Tensor,
    scale: float,
    window_left: int,
    softcap: float,
) -> Tensor:
    """Causal attention. Sequence i has the new tokens from ``starts[i]`` on, and its pages from ``page_starts[i]`` on.

    One operator, so that a recorded step finds in the tensors what a step after it has put there.
    """
    out = torch.full_like(query, math.nan)
    page_size, heads = key_pages.shape[1], key_pages.shape[2]
    bounds = starts.tolist()
    for start, stop, first_page, length in zip(
        bounds[:-1], bounds[1:], page_starts.tolist()[: len(lengths)], lengths.tolist(), strict=True
    ):
        places = [(int(pages[first_page + i // page_size]), i % page_size) for i in range(length)]
        keys = torch.stack([key_pages[page, offset] for page, offset in places]).float()
        values = torch.stack([value_pages[page, offset] for page, offset in places]).float()
        for token in range(start, stop):
            position = length - (stop - token)
            first = 0 if window_left < 0 else max(0, position - window_left)
            for head in range(query.shape[1]):
                group = head // (query.shape[1] // heads)
                scores = keys[first : position + 1, group] @ query[token, head].float() * scale
                if softcap > 0:
                    scores = softcap * torch.tanh(scores / softcap)
                out[token, head] = (scores.softmax(0) @ values[first : position + 1, group]).to(out.dtype)
    return out


@attend_pages.register_fake
def _(query: Tensor, *_args: object) -> Tensor:
    return torch.empty_like(query)


def _attend_tables(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    starts: Tensor,
    tables: Tensor,
    lengths: Tensor,
    **options: Any,
) -> Tensor:
    for tensor in (starts, tables, lengths):
        assert tensor.dtype == torch.int32
        assert tensor.stride(-1) == 1
    assert len(starts) == len(tables) + 1 == len(lengths) + 1
    page_starts = torch.arange(len(tables), device=tables.device) * tables.shape[1]
    return attend_pages(query, keys, values, starts, tables.reshape(-1), page_starts, lengths, **options)


def fake_varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """`torch.nn.attention.varlen.varlen_attn` of torch 2.13, with a block table."""
    assert cu_seq_k is None
    assert seqused_k is not None
    assert block_table is not None
    assert scale is not None
    _check_longest(cu_seq_q.diff(), max_q)
    _check_longest(seqused_k, max_k)
    assert enable_gqa or query.shape[1] == key.shape[2]
    left, right = window_size
    assert right == 0, "it would look ahead"
    options = {"scale": scale, "window_left": left, "softcap": 0.0}
    return _attend_tables(query, key, value, cu_seq_q, block_table, seqused_k, **options)


def _check_longest(lengths: Tensor, told: int) -> None:
    """Where they can be read: a fake tensor holds nothing, and a recorded step must not look."""
    if type(lengths) is Tensor and not torch.utils._python_dispatch._get_current_dispatch_mode():
        assert told >= int(lengths.max())


def _flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    assert causal
    assert block_table is not None
    assert k.shape[1] % 256 == 0, "Paged KV cache block size must be divisible by 256"
    lengths = cu_seqlens_k.diff()
    _check_longest(cu_seqlens_q.diff(), max_seqlen_q)
    _check_longest(lengths, max_seqlen_k)
    assert softmax_scale is not None
    options = {"scale": softmax_scale, "window_left": window_size[0], "softcap": softcap}
    return _attend_tables(q, k, v, cu_seqlens_q, block_table, lengths, **options)


def _flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor:
    assert causal
    assert k_cache.shape[1] % 256 == 0, "Paged KV cache block size must be divisible by 256"
    assert cache_seqlens is not None
    assert block_table is not None
    assert softmax_scale is not None
    num_sequences, num_new = q.shape[:2]
    starts = torch.arange(num_sequences + 1, dtype=torch.int32, device=q.device) * num_new
    options = {"scale": softmax_scale, "window_left": window_size[0], "softcap": softcap}
    out = _attend_tables(q.flatten(0, 1), k_cache, v_cache, starts, block_table, cache_seqlens, **options)
    return out.view(q.shape)


class _Wrapper:
    """Planned once, run for every layer; what it was planned with lies in tensors of its own."""

    def __init__(self, workspace: Tensor, kv_layout: str, buffers: dict[str, Tensor] | None) -> None:
        assert workspace.dtype == torch.uint8
        assert kv_layout == "NHD"
        self.buffers = buffers
        self.options: dict[str, Any] = {}

    indptr: Tensor
    indices: Tensor
    last: Tensor

    def _keep(self, name: str, values: Tensor) -> None:
        assert values.dtype == torch.int32
        if self.buffers is None:
            setattr(self, name, values.clone())
        else:
            self.buffers[name][: len(values)].copy_(values)
            setattr(self, name, self.buffers[name])

    def _plan(
        self,
        starts: Tensor | None,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        options: dict[str, Any],
    ) -> None:
        assert indptr.device.type == last_page_len.device.type == "cpu", "the plan would wait for the device"
        known = {"window_left", "logits_soft_cap", "q_data_type", "kv_data_type", "sm_scale", "disable_split_kv"}
        assert options.keys() <= known
        for name, values in (("indptr", indptr), ("indices", indices), ("last", last_page_len)):
            self._keep(name, values)
        self.starts = starts
        self.sizes = (num_qo_heads, num_kv_heads, head_dim, page_size)
        self.options = options

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        keys, values = paged_kv_cache
        page_size = keys.shape[1]
        assert (q.shape[1], keys.shape[2], q.shape[2], page_size) == self.sizes
        assert q.dtype == self.options["q_data_type"]
        num_sequences = len(self.last)
        lengths = (self.indptr.diff() - 1) * page_size + self.last
        starts = torch.arange(num_sequences + 1, device=q.device) if self.starts is None else self.starts
        return attend_pages(
            q,
            keys,
            values,
            starts.to(q.device),
            self.indices,
            self.indptr,
            lengths,
            scale=self.options["sm_scale"],
            window_left=self.options["window_left"],
            softcap=self.options["logits_soft_cap"] or 0.0,
        )


class BatchDecodeWithPagedKVCacheWrapper(_Wrapper):
    """Of flashinfer 0.6; optional arguments of its plan are keywords."""

    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        paged_kv_indptr_buffer: Tensor | None = None,
        paged_kv_indices_buffer: Tensor | None = None,
        paged_kv_last_page_len_buffer: Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        buffers = None
        if use_cuda_graph:
            assert paged_kv_indptr_buffer is not None
            assert paged_kv_indices_buffer is not None
            assert paged_kv_last_page_len_buffer is not None
            assert len(paged_kv_indptr_buffer) == len(paged_kv_last_page_len_buffer) + 1
            buffers = {
                "indptr": paged_kv_indptr_buffer,
                "indices": paged_kv_indices_buffer,
                "last": paged_kv_last_page_len_buffer,
            }
        super().__init__(float_workspace_buffer, kv_layout, buffers)

    def plan(
        self,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        **options: Any,
    ) -> None:
        if self.buffers is not None:
            assert len(last_page_len) == len(self.buffers["last"]), "the batch size is fixed with a graph"
        self._plan(None, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size, options)


class BatchPrefillWithPagedKVCacheWrapper(_Wrapper):
    """Of flashinfer 0.6."""

    def __init__(self, float_workspace_buffer: Tensor, kv_layout: str = "NHD", use_cuda_graph: bool = False) -> None:
        assert not use_cuda_graph
        super().__init__(float_workspace_buffer, kv_layout, None)

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        head_dim_vo: int | None = None,
        causal: bool = False,
        **options: Any,
    ) -> None:
        assert causal
        assert qo_indptr.device.type == "cpu"
        self._plan(
            qo_indptr,
            paged_kv_indptr,
            paged_kv_indices,
            paged_kv_last_page_len,
            num_qo_heads,
            num_kv_heads,
            head_dim_qk,
            page_size,
            options,
        )


def package(name: str, **members: Callable[..., Any]) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module


FLASH_ATTN = package(
    "flash_attn", flash_attn_varlen_func=_flash_attn_varlen_func, flash_attn_with_kvcache=_flash_attn_with_kvcache
)
FLASHINFER = package(
    "flashinfer",
    BatchDecodeWithPagedKVCacheWrapper=BatchDecodeWithPagedKVCacheWrapper,
    BatchPrefillWithPagedKVCacheWrapper=BatchPrefillWithPagedKVCacheWrapper,
)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on our back ends find these."""
    monkeypatch.setattr(cuda_varlen.varlen, "varlen_attn", fake_varlen_attn)
    monkeypatch.setitem(sys.modules, "flash_attn", FLASH_ATTN)
    monkeypatch.setitem(sys.modules, "flashinfer", FLASHINFER)
    monkeypatch.setattr(cuda_flashinfer, "WORKSPACE_BYTES", 16)
