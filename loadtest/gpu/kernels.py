"""Attention back ends on the device against attention in float64, over random tensors.

A back end with kernels of its own adds a function to `CHECKS`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from gpu import own_kernels, own_rows
from gpu.setting import Setting
from server.engine import batch_inputs
from server.engine.attention import cuda
from server.engine.attention.backend import AttentionBackend
from server.engine.attention.cuda_triton import TritonAttention
from server.engine.attention.torch_native import TorchNativeAttention
from server.engine.batch_inputs import Row
from server.modules.attention import LayerSpec

PLAIN = LayerSpec(num_heads=8, num_kv_heads=2, key_dim=64, value_dim=64, scaling=0.125)
SPECS = {
    "grouped": PLAIN,
    "one head each": dataclasses.replace(PLAIN, num_kv_heads=8),
    "nine heads of three": dataclasses.replace(PLAIN, num_heads=9, num_kv_heads=3),
    "128 wide": dataclasses.replace(PLAIN, key_dim=128, value_dim=128),
    "window": dataclasses.replace(PLAIN, window=33),
    "softcap": dataclasses.replace(PLAIN, softcap=20.0),
}
BLOCK_SIZE = 32
TABLES = ([3, 11, 0, 9, 5], [7, 2], [1, 12, 4, 13, 6], [8, 10])
STEPS = (
    [(0, 70), (0, 5), (0, 1)],
    [(70, 71), (5, 40), (1, 130)],
    [(71, 72), (40, 41), (130, 131), (0, 33)],
    [(72, 73), (41, 42), (131, 132), (33, 34)],
)
"""Of each sequence the tokens that a step computes: prompts, chunks after a context, single tokens."""
TOLERANCE = {torch.bfloat16: 0.02, torch.float16: 0.004}
"""Of a token's result, as a part of its length."""


def run(setting: Setting) -> None:
    device = setting.use_device()
    with torch.inference_mode():
        for check in CHECKS:
            check(setting, device)


def torchs_own(setting: Setting, device: torch.device) -> None:
    """The back end that works everywhere, and is the yardstick for the others."""
    for name, spec in SPECS.items():
        for dtype, tolerance in TOLERANCE.items():
            backend = TorchNativeAttention([spec], 14, BLOCK_SIZE, dtype, device)
            distance = worst_distance(backend, spec, dtype, device)
            setting.results.add(
                "torch", ok=distance <= tolerance, spec=name, dtype=str(dtype), distance=distance, tolerance=tolerance
            )


def packages(setting: Setting, device: torch.device) -> None:
    """Paged kernels of packages: those that are installed and fit this device."""
    if device.type != "cuda":
        setting.results.add("packages", why="their kernels need a CUDA device")
        return
    for kind in (each for each in cuda.BACKENDS if each is not TritonAttention):
        for name, spec in SPECS.items():
            for block_size in (BLOCK_SIZE, 256):
                for dtype in TOLERANCE:
                    labels = {"spec": name, "block_size": block_size, "dtype": str(dtype)}
                    if problem := kind.problem([spec], block_size, dtype, device):
                        setting.results.add(kind.name, why=problem, **labels)
                        continue
                    problem = cuda.trial_problem(kind, [spec], block_size, dtype, device, deterministic=False)
                    setting.results.add(kind.name, ok=problem is None, problem=problem, **labels)


CHECKS = (own_kernels.check, own_rows.check, torchs_own, packages)


def worst_distance(backend: AttentionBackend, spec: LayerSpec, dtype: torch.dtype, device: torch.device) -> float:
    """Of any token's result from that in float64, as a part of its length."""
    generator = torch.Generator().manual_seed(0)
    backend.clear_blocks(range(14))
    seen: list[list[Tensor]] = [[torch.empty(spec.num_kv_heads, 0, spec.key_dim)] * 2 for _ in TABLES]
    worst = 0.0
    for step in STEPS:
        rows = [
            Row(key=i, token_ids=[0] * (stop - start), num_computed=start, block_table=TABLES[i])
            for i, (start, stop) in enumerate(step)
        ]
        inputs = batch_inputs.build(rows, BLOCK_SIZE, device)
        num_tokens = sum(stop - start for start, stop in step)
        heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        query, key, value = (
            torch.randn(1, count, num_tokens, spec.key_dim, generator=generator).to(dtype) for count in heads
        )
        backend.begin(inputs)
        ours = backend.attend(0, *(tensor.to(device) for tensor in (query, key, value)), None)[0].double().cpu()
        first = 0
        for i, (start, stop) in enumerate(step):
            part = slice(first, first + stop - start)
            seen[i] = [torch.cat((old, new[0, :, part]), 1) for old, new in zip(seen[i], (key, value), strict=True)]
            expected = exact(spec, query[0, :, part].double(), *(tensor.double() for tensor in seen[i]), start)
            distance = (ours[part] - expected).norm(dim=-1) / expected.norm(dim=-1)
            worst = max(worst, float(distance.max()))
            first += stop - start
    return worst


def exact(spec: LayerSpec, query_HQD: Tensor, keys: Tensor, values: Tensor, start: int) -> Any:
    """``[Q, heads, D]``: plain causal attention of the tokens from ``start`` on."""
    group = spec.num_heads // spec.num_kv_heads
    scores = query_HQD @ keys.repeat_interleave(group, 0).transpose(1, 2) * spec.scaling
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    position = torch.arange(start, start + query_HQD.shape[1])[:, None]
    place = torch.arange(keys.shape[1])
    hidden = place > position
    if spec.window is not None:
        hidden |= place <= position - spec.window
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values.repeat_interleave(group, 0)).transpose(0, 1)
