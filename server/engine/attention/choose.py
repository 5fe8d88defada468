"""Which attention back end serves a model's layers."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from server.engine.attention import native
from server.engine.attention.backend import AttentionBackend
from server.engine.attention.cuda import choose_cuda
from server.engine.attention.native import NativeAttention
from server.engine.attention.torch_native import TorchNativeAttention
from server.modules.attention import LayerSpec
from server.number_types import KvDtype

log = logging.getLogger("sluice.engine")


def choose_attention(
    specs: Sequence[LayerSpec],
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    deterministic: bool = False,
    kv_dtype: KvDtype = "auto",
) -> AttentionBackend:
    """The fastest back end that can attend in all of these layers. Only the CPU kernels store another ``kv_dtype``.

    The CUDA back ends have no bias by distance.
    """
    if kv_dtype != "auto":
        return NativeAttention(specs, num_blocks, block_size, dtype, device, kv_dtype=kv_dtype)
    if device.type == "cuda" and all(spec.bias is None for spec in specs):
        return choose_cuda(specs, num_blocks, block_size, dtype, device, deterministic=deterministic)
    obstacle = NativeAttention.obstacle(specs, block_size, dtype, device)
    if obstacle is None:
        return NativeAttention(specs, num_blocks, block_size, dtype, device)
    log.debug("attention by torch's own operations: %s", obstacle)
    return TorchNativeAttention(specs, num_blocks, block_size, dtype, device, deterministic=deterministic)


def bytes_per_block(
    specs: Sequence[LayerSpec],
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    kv_dtype: KvDtype = "auto",
) -> int:
    """Bytes that a block takes in all of these layers, in the back end that `choose_attention` takes for them.

    A worker that replaces another is given the bytes of its cache, and must make as many blocks of them.
    """
    if kv_dtype != "auto" or NativeAttention.obstacle(specs, block_size, dtype, device) is None:
        return sum(native.block_bytes(spec, dtype, kv_dtype) for spec in specs)
    return sum(spec.block_bytes(block_size, dtype) for spec in specs)
