"""The package flashinfer-python, 0.5 to 0.6: kernels planned once a step for all layers that are alike.

A plan is made on the host. Where steps are replayed, a wrapper keeps its tensors for one number of sequences, and is
planned anew before each replay; the plan itself is never part of a graph.

Dimension key: T new tokens, B sequences, N blocks, P tokens in one, H heads, D width of one.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from server.engine.attention.cuda_paged import PagedAttention, layer_problem, window_of
from server.engine.attention.cuda_tables import HostTables, Int32Array
from server.engine.batch_inputs import on_device
from server.modules.attention import LayerSpec

HEAD_DIMS = (64, 128, 256)
WORKSPACE_BYTES = 128 * 1024 * 1024
"""As its documentation advises; all wrappers of a back end share it."""

TENSOR_CORE_GROUP = 4
"""From this many query heads for each key head, its documentation advises tensor cores for single tokens."""

Alike = tuple[int, int, int, float, int | None, float | None]


def _alike(spec: LayerSpec) -> Alike:
    """Layers with the same of these share a plan."""
    return spec.num_heads, spec.num_kv_heads, spec.key_dim, spec.scaling, spec.window, spec.softcap


class FlashInferAttention(PagedAttention):
    """A decode wrapper where every sequence has one new token, else a prefill wrapper for all of them."""

    name = "flashinfer"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=self._device)
        self._kinds = {_alike(spec): spec for spec in self.specs}
        self._wrappers: dict[tuple[str, int, Alike], Any] = {}
        self._planned: dict[Alike, Any] = {}

    @classmethod
    def problem(
        cls,
        specs: Sequence[LayerSpec],
        block_size: int,  # noqa: ARG003
        dtype: torch.dtype,
        device: torch.device,  # noqa: ARG003
    ) -> str | None:
        if problem := layer_problem(specs, dtype, head_dims=HEAD_DIMS, softcap=True):
            return problem
        try:
            importlib.import_module("flashinfer")
        except (ImportError, OSError, RuntimeError) as error:
            return f"it is not installed ({error})"
        return None

    @property
    def _package(self) -> ModuleType:
        return importlib.import_module("flashinfer")

    def _plan(self, host: HostTables, *, is_static: bool) -> None:
        indptr, indices, last = _page_lists(host, self._block_size)
        # What the plan reads on the host stays there; the kernel's list of blocks is copied along.
        pages = (torch.from_numpy(indptr), on_device(indices, self._device), torch.from_numpy(last))
        starts = torch.from_numpy(host.parts.starts_B1)
        for alike, spec in self._kinds.items():
            common = {
                "sm_scale": spec.scaling,
                "window_left": window_of(spec)[0],
                "logits_soft_cap": spec.softcap,
                "q_data_type": self.dtype,
                "kv_data_type": self.dtype,
                "disable_split_kv": self._deterministic,
            }
            sizes = (spec.num_heads, spec.num_kv_heads, spec.key_dim, self._block_size)
            if host.most_new == 1:
                wrapper = self._decode_wrapper(spec, host.num_sequences if is_static else 0)
                wrapper.plan(*pages, *sizes, **common)
            else:
                wrapper = self._wrapper("prefill", 0, spec, "BatchPrefillWithPagedKVCacheWrapper", {})
                wrapper.plan(starts, *pages, *sizes, causal=True, **common)
            self._planned[alike] = wrapper

    def _decode_wrapper(self, spec: LayerSpec, num_sequences: int) -> Any:
        """``num_sequences`` is set where the step is replayed."""
        options: dict[str, Any] = {"use_tensor_cores": spec.num_heads // spec.num_kv_heads >= TENSOR_CORE_GROUP}
        if num_sequences and ("decode", num_sequences, _alike(spec)) not in self._wrappers:
            sizes = (num_sequences + 1, num_sequences * self.spare_block, num_sequences)
            indptr, indices, last = (torch.empty(n, dtype=torch.int32, device=self._device) for n in sizes)
            options |= {
                "use_cuda_graph": True,
                "paged_kv_indptr_buffer": indptr,
                "paged_kv_indices_buffer": indices,
                "paged_kv_last_page_len_buffer": last,
            }
        return self._wrapper("decode", num_sequences, spec, "BatchDecodeWithPagedKVCacheWrapper", options)

    def _wrapper(self, kind: str, num_sequences: int, spec: LayerSpec, name: str, options: dict[str, Any]) -> Any:
        key = (kind, num_sequences, _alike(spec))
        if key not in self._wrappers:
            self._wrappers[key] = getattr(self._package, name)(self._workspace, "NHD", **options)
        return self._wrappers[key]

    def _attend(self, spec: LayerSpec, query_THD: Tensor, keys_NPHD: Tensor, values_NPHD: Tensor) -> Tensor:
        out: Tensor = self._planned[_alike(spec)].run(query_THD.contiguous(), (keys_NPHD, values_NPHD))
        return out


def _page_lists(host: HostTables, block_size: int) -> tuple[Int32Array, Int32Array, Int32Array]:
    """Where each sequence's blocks start in one list, the list, and how many tokens its last block holds."""
    parts = host.parts
    used = -(-parts.lengths_B // block_size)
    indptr = np.zeros(host.num_sequences + 1, dtype=np.int32)
    np.cumsum(used, out=indptr[1:])
    is_used = np.arange(host.width) < used[:, None]
    return indptr, parts.tables_BW[is_used], parts.lengths_B - (used - 1) * block_size
