"""The package flash-attn, 2.5.7 to 2.8: FA2, on compute capability 8.0 and above.

Its blocks hold a multiple of 256 tokens: ``block_size`` must be set so.

Dimension key: T new tokens, N blocks, P tokens in one, H heads, D width of one.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from server.engine.attention.cuda_paged import PagedAttention, layer_problem, window_of
from server.modules.attention import LayerSpec

BLOCK_SIZE_STEP = 256
HEAD_DIMS = range(8, 257, 8)


class FlashAttention(PagedAttention):
    """``flash_attn_with_kvcache`` where every sequence has one new token, else ``flash_attn_varlen_func``."""

    name = "flash-attn"

    @classmethod
    def problem(
        cls,
        specs: Sequence[LayerSpec],
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,  # noqa: ARG003
    ) -> str | None:
        if problem := layer_problem(specs, dtype, head_dims=HEAD_DIMS, softcap=True):
            return problem
        try:
            importlib.import_module("flash_attn")
        except (ImportError, OSError) as error:
            return f"it is not installed ({error})"
        if block_size % BLOCK_SIZE_STEP:
            return f"block_size is {block_size} and must be a multiple of {BLOCK_SIZE_STEP}"
        return None

    @property
    def _package(self) -> ModuleType:
        return importlib.import_module("flash_attn")

    def _attend(self, spec: LayerSpec, query_THD: Tensor, keys_NPHD: Tensor, values_NPHD: Tensor) -> Tensor:
        host, parts = self.step.host, self.step.parts
        options = {
            "softmax_scale": spec.scaling,
            "causal": True,
            "window_size": window_of(spec),
            "softcap": spec.softcap or 0.0,
            "block_table": parts.tables_BW,
        }
        if host.most_new == 1:
            single: Tensor = self._package.flash_attn_with_kvcache(
                query_THD[:, None],
                keys_NPHD,
                values_NPHD,
                cache_seqlens=parts.lengths_B,
                num_splits=1 if self._deterministic else 0,
                **options,
            )
            return single[:, 0]
        out: Tensor = self._package.flash_attn_varlen_func(
            query_THD,
            keys_NPHD,
            values_NPHD,
            cu_seqlens_q=parts.starts_B1,
            cu_seqlens_k=parts.length_starts_B1,
            max_seqlen_q=host.most_new,
            max_seqlen_k=host.most_tokens,
            **options,
        )
        return out
