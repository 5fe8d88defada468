"""torch's own paged attention: `torch.nn.attention.varlen.varlen_attn`, with block tables from torch 2.13 on.

It needs a flash attention that is installed beside torch: FA3 (package ``flash_attn_interface``)
on compute capability 9, FA4 (``flash-attn-4``) on 10. Both take blocks of any size.

Dimension key: T new tokens, N blocks, P tokens in one, H heads, D width of one.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention import activate_flash_attention_impl, varlen

from server.engine.attention.cuda_paged import PagedAttention, layer_problem, window_of
from server.modules.attention import LayerSpec

HEAD_DIMS = range(8, 257, 8)
KERNELS = {9: "FA3", 10: "FA4"}
"""By the major number of the compute capability."""


def version_problem() -> str | None:
    """What this torch lacks, as the end of a sentence."""
    if "block_table" in inspect.signature(varlen.varlen_attn).parameters:
        return None
    return f"it needs torch 2.13: varlen_attn of torch {torch.__version__} takes no block table"


@cache
def activation_problem(device: torch.device) -> str | None:
    """Put the kernels of this device under torch's operator. What went wrong, as the end of a sentence."""
    major = torch.cuda.get_device_capability(device)[0]
    if major not in KERNELS:
        return f"it has no kernel for compute capability {major}"
    try:
        activate_flash_attention_impl(KERNELS[major])
    except (ImportError, OSError, RuntimeError, ValueError, AttributeError) as error:
        return f"{KERNELS[major]} is not installed ({error})"
    return None


class VarlenAttention(PagedAttention):
    """FA3 or FA4 through torch."""

    name = "varlen"

    @classmethod
    def problem(
        cls,
        specs: Sequence[LayerSpec],
        block_size: int,  # noqa: ARG003
        dtype: torch.dtype,
        device: torch.device,
    ) -> str | None:
        if problem := layer_problem(specs, dtype, head_dims=HEAD_DIMS, softcap=False):
            return problem
        return version_problem() or activation_problem(device)

    def _attend(self, spec: LayerSpec, query_THD: Tensor, keys_NPHD: Tensor, values_NPHD: Tensor) -> Tensor:
        host, parts = self.step.host, self.step.parts
        out = varlen.varlen_attn(
            query_THD.contiguous(),
            keys_NPHD,
            values_NPHD,
            parts.starts_B1,
            None,
            host.most_new,
            host.most_tokens,
            scale=spec.scaling,
            window_size=window_of(spec),
            enable_gqa=spec.num_heads != spec.num_kv_heads,
            seqused_k=parts.lengths_B,
            block_table=parts.tables_BW,
            num_splits=1 if self._deterministic else None,
        )
        assert isinstance(out, Tensor)
        return out
