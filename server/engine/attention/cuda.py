"""Which attention serves a model's layers on CUDA: the first that is there, fits, and gives torch's own results.

Dimension key: T new tokens, H heads, D width of one.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from server.engine import batch_inputs
from server.engine.attention import cuda_trial
from server.engine.attention.backend import AttentionBackend
from server.engine.attention.cuda_flash_attn import FlashAttention
from server.engine.attention.cuda_flashinfer import FlashInferAttention
from server.engine.attention.cuda_paged import PagedAttention
from server.engine.attention.cuda_triton import TritonAttention
from server.engine.attention.cuda_varlen import VarlenAttention
from server.engine.attention.torch_native import TorchNativeAttention
from server.engine.batch_inputs import BatchInputs, Row
from server.modules.attention import HeadNorm, LayerSpec, Rotary
from server.out_of_memory import raise_if_memory

log = logging.getLogger("sluice.engine")

BACKENDS: tuple[type[PagedAttention], ...] = (TritonAttention, VarlenAttention, FlashInferAttention, FlashAttention)
"""The first choice first."""

FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, AssertionError, NotImplementedError, OSError)
"""What a package raises that does not fit this GPU, this torch or this compiler."""

TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.01, torch.float32: 0.001}
"""Largest distance from attention in float64, of each token's result and as a part of its length."""

TRIED_LENGTHS = (5, 70, 600)
"""Sequences of a trial, so that one holds several blocks of any size."""

TRIED_WINDOW = 40
"""A longer window is tried as one of this length, which some of them exceed."""


def choose_cuda(
    specs: Sequence[LayerSpec],
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    deterministic: bool = False,
) -> AttentionBackend:
    """A line in the log says why each one that was passed over was."""
    options = (block_size, dtype, device)
    for backend in BACKENDS:
        problem = backend.problem(specs, *options)
        if problem is None and device.type == "cuda":
            problem = cuda_trial.problem(backend.name, kinds_of(specs), *options, deterministic=deterministic)
        problem = problem or trial_problem(backend, specs, *options, deterministic=deterministic)
        if problem is None:
            return backend(specs, num_blocks, block_size, dtype, device, deterministic=deterministic)
        log.info("attention %s is not used: %s", backend.name, problem)
    return TorchNativeAttention(specs, num_blocks, block_size, dtype, device, deterministic=deterministic)


def trial_problem(
    backend: type[PagedAttention],
    specs: Sequence[LayerSpec],
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    deterministic: bool,
) -> str | None:
    """Attend over random tensors in layers of every kind. What went wrong, as the end of a sentence."""
    kinds = kinds_of(specs)
    widths = [-(-(length + 3) // block_size) for length in TRIED_LENGTHS]
    free = list(range(sum(widths)))
    tables = [[free.pop() for _ in range(width)] for width in widths]
    oracle = TorchNativeAttention(kinds, sum(widths), block_size, torch.float64, device)
    try:
        tried = backend(kinds, sum(widths), block_size, dtype, device, deterministic=deterministic)
        tried.poison()
        for number, rows in enumerate(_steps(tables)):
            inputs = batch_inputs.build(rows, block_size, device)
            oracle.begin(inputs)
            tried.begin(inputs)
            attend = (_attend, _attend_packed)[number % 2]
            for layer, spec in enumerate(kinds):
                tensors = _random_tensors(spec, inputs.slots_T.shape[0], dtype, device)
                expected = attend(oracle, layer, [tensor.double() for tensor in tensors], inputs)
                distance = (attend(tried, layer, tensors, inputs).double() - expected).norm(dim=-1)
                worst = float((distance / expected.norm(dim=-1)).max())
                if not worst <= TOLERANCE[dtype]:
                    return f"its results are {worst:.2g} of their length from torch's"
    except FAILURES as error:
        raise_if_memory(error)
        return f"it fails ({type(error).__name__}: {error})"
    return None


def kinds_of(specs: Sequence[LayerSpec]) -> tuple[LayerSpec, ...]:
    """The distinct kinds of layers, in the sizes that a trial uses."""
    return tuple(dict.fromkeys(_narrow(spec) for spec in specs))


def _attend(backend: AttentionBackend, layer: int, tensors: Sequence[Tensor], inputs: BatchInputs) -> Tensor:  # noqa: ARG001
    """``[T, H, D]``."""
    query, key, value = tensors
    return backend.attend(layer, query, key, value, _sinks(backend.specs[layer], query))[0]


def _attend_packed(backend: AttentionBackend, layer: int, tensors: Sequence[Tensor], inputs: BatchInputs) -> Tensor:
    """The same with norms of heads, and with half of each rotated."""
    spec = backend.specs[layer]
    device, pairs = inputs.slots_T.device, spec.key_dim // 4
    angles_PR = torch.arange(max(TRIED_LENGTHS) + 3, device=device)[:, None] / (
        2.0 + torch.arange(pairs, device=device)
    )
    weight_D = torch.linspace(0.5, 1.5, spec.key_dim, device=device)
    qkv_TX = torch.cat([tensor[0].transpose(0, 1).flatten(1) for tensor in tensors], dim=1)
    out_TX = backend.attend_packed(
        layer,
        qkv_TX,
        inputs.rotary_ids_T,
        rotary=Rotary(cos_PR=angles_PR.cos(), sin_PR=angles_PR.sin()),
        head_norm=HeadNorm(query_weight_D=weight_D, key_weight_D=weight_D.flip(0), eps=1e-6),
        sinks=_sinks(spec, qkv_TX),
    )
    return out_TX.view(len(out_TX), spec.num_heads, spec.value_dim)


def _sinks(spec: LayerSpec, like: Tensor) -> Tensor | None:
    if not spec.has_sinks:
        return None
    return torch.linspace(-1.0, 2.0, spec.num_heads, dtype=like.dtype, device=like.device)


def _narrow(spec: LayerSpec) -> LayerSpec:
    return spec if spec.window is None else dataclasses.replace(spec, window=min(spec.window, TRIED_WINDOW))


def _steps(tables: list[list[int]]) -> list[list[Row]]:
    """Whole prompts, the rest of them, and single tokens."""
    done = [max(1, length // 2) for length in TRIED_LENGTHS]
    parts = [
        [(0, stop) for stop in done],
        [(start, length) for start, length in zip(done, TRIED_LENGTHS, strict=True)],
        [(length, length + 1) for length in TRIED_LENGTHS],
        [(length + 1, length + 2) for length in TRIED_LENGTHS],
    ]
    return [
        [
            Row(key=i, token_ids=[0] * (stop - start), num_computed=start, block_table=tables[i])
            for i, (start, stop) in enumerate(part)
        ]
        for part in parts
    ]


def _random_tensors(
    spec: LayerSpec, num_tokens: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    shapes = ((spec.num_heads, spec.key_dim), (spec.num_kv_heads, spec.key_dim), (spec.num_kv_heads, spec.value_dim))
    query, key, value = (
        torch.randn(1, heads, num_tokens, width, generator=generator).to(device, dtype) for heads, width in shapes
    )
    return query, key, value
