"""Small products, norms and attention by the CPU kernels in use beside torch's, before a weight is packed for them.

Dimension key: M rows of an input, K its width, N outputs; C tokens, H heads, D width of a head.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional

from server.config import ModelConfig
from server.engine import batch_inputs
from server.engine.attention.backend import SourceRow
from server.engine.attention.native import NativeAttention
from server.engine.batch_inputs import Row
from server.errors import EXIT_MODEL, ConfigurationError
from server.modules import text_attention
from server.modules.attention import DistanceBias, LayerSpec
from server.modules.texts import Texts
from server.native import kernels, ops, packing, reference
from server.native.abi import BLOCK_SIZE
from server.native.formats import FORMATS
from server.native.linear import Linear
from server.number_types import KvDtype, Quantize

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest error, as a part of the largest result."""

NUM_ROWS, WIDTH, NUM_OUTPUTS = 21, 160, 70
"""More rows than a tile has and no whole number of tiles, panels or steps."""

NUM_TOKENS, HEADS, HEAD_WIDTH = 45, (4, 2), 32
NUM_BLOCKS = -(-NUM_TOKENS // BLOCK_SIZE)

BIAS = DistanceBias.of(torch.linspace(-3.0, 3.0, HEADS[0] * 19).view(19, HEADS[0]).T.contiguous(), 11)
"""A table whose ends lie within the tokens, on both sides."""


def choose(model: ModelConfig, num_threads: int) -> None:
    """Use the kernels that ``model`` asks for, once they have passed the trial. Raises `ConfigurationError`."""
    try:
        kernels.use(model.kernels, num_threads, problem)
    except ImportError as error:
        raise ConfigurationError(
            f"Model {model.name} asks for {model.kernels} kernels: {error}. Set kernels to auto.", exit_code=EXIT_MODEL
        ) from error


def problem() -> str | None:
    """What is wrong with the kernels in use, as the end of a sentence."""
    numbers = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        for is_gated, quantize in itertools.product((False, True), get_args(Quantize)):
            if not _product_is_right(dtype, quantize, is_gated, numbers):
                return f"its {quantize if quantize != 'none' else dtype} products are wrong"
        if not _norm_is_right(dtype, numbers):
            return "its norms are wrong"
        if not _attention_is_right(dtype, numbers):
            return f"its {dtype} attention is wrong"
    return None


def _product_is_right(dtype: torch.dtype, quantize: Quantize, is_gated: bool, numbers: torch.Generator) -> bool:
    of_format = FORMATS[quantize]
    multiple = of_format.multiple(dtype)
    width = -(-WIDTH // multiple) * multiple
    weight_NK = (torch.randn(2 * NUM_OUTPUTS, width, generator=numbers) / width**0.5).to(dtype)
    bias_N = torch.randn(2 * NUM_OUTPUTS, generator=numbers)
    if packing.problem(weight_NK, quantize) is not None:
        return True
    x_MK = torch.randn(NUM_ROWS, width, generator=numbers).to(dtype)
    linear = Linear(weight_NK, bias_N, activation="silu", is_gated=is_gated, quantize=quantize)
    product = of_format.rounded_input(x_MK).double() @ of_format.rounded(weight_NK).double().T
    expected = reference.finish(product, bias_N, "silu", is_gated=is_gated, residual=None)
    found = linear(x_MK, out_float=True)
    # A row that is computed alone shows another way through the kernel.
    alone = linear(x_MK[-1:], out_float=True)
    return _is_close(found, expected, torch.float32) and torch.equal(alone, found[-1:])


def _norm_is_right(dtype: torch.dtype, numbers: torch.Generator) -> bool:
    x_MK = torch.randn(NUM_ROWS, WIDTH, generator=numbers).to(dtype)
    weight_K = torch.randn(WIDTH, generator=numbers)
    return _is_close(ops.rms_norm(x_MK, weight_K, 1e-5), reference.rms_norm(x_MK, weight_K, 1e-5), dtype)


def _attention_is_right(dtype: torch.dtype, numbers: torch.Generator) -> bool:
    num_heads, num_kv_heads = HEADS
    query_CHD, key_CHD, value_CHD = (
        torch.randn(NUM_TOKENS, heads, HEAD_WIDTH, generator=numbers).to(dtype)
        for heads in (num_heads, num_kv_heads, num_kv_heads)
    )
    states = query_CHD, key_CHD, value_CHD
    for kv_dtype, bias in itertools.product(get_args(KvDtype) if kernels.has("attend") else (), (None, BIAS)):
        backend = _backend(bias, dtype, kv_dtype)
        cached = (query_CHD, *(reference.CACHED[kv_dtype](x) for x in (key_CHD, value_CHD)))
        if not _is_close(_of_a_decoder(backend, *states), _expected_attention(cached, bias, is_causal=True), dtype):
            return False
        if not _is_close(_of_a_source(backend, *states), _expected_attention(cached, None, is_causal=False), dtype):
            return False
    for bias in (None, BIAS):
        found = text_attention.attend(*states, Texts([NUM_TOKENS]), scaling=HEAD_WIDTH**-0.5, bias=bias)
        if not _is_close(found, _expected_attention(states, bias, is_causal=False), dtype):
            return False
    return True


def _backend(bias: DistanceBias | None, dtype: torch.dtype, kv_dtype: KvDtype) -> NativeAttention:
    spec = LayerSpec(
        num_heads=HEADS[0],
        num_kv_heads=HEADS[1],
        key_dim=HEAD_WIDTH,
        value_dim=HEAD_WIDTH,
        scaling=HEAD_WIDTH**-0.5,
        bias=bias,
    )
    return NativeAttention([spec], 2 * NUM_BLOCKS, BLOCK_SIZE, dtype, CPU, kv_dtype=kv_dtype)


def _of_a_decoder(backend: NativeAttention, query_CHD: Tensor, key_CHD: Tensor, value_CHD: Tensor) -> Tensor:
    """Of one sequence's tokens, all of them new."""
    row = Row(key=0, token_ids=[0] * NUM_TOKENS, num_computed=0, block_table=list(range(NUM_BLOCKS)), num_logits=1)
    backend.begin(batch_inputs.build([row], BLOCK_SIZE, CPU))
    query, key, value = (x.transpose(0, 1)[None] for x in (query_CHD, key_CHD, value_CHD))
    return backend.attend(0, query, key, value, None)[0]


def _of_a_source(backend: NativeAttention, query_CHD: Tensor, key_CHD: Tensor, value_CHD: Tensor) -> Tensor:
    """Of tokens that see all keys of another sequence."""
    source = SourceRow(NUM_TOKENS, NUM_TOKENS, list(range(NUM_BLOCKS, 2 * NUM_BLOCKS)))
    backend.begin_sources([source])
    backend.write_source(0, torch.cat((key_CHD.flatten(1), value_CHD.flatten(1)), dim=1))
    backend.begin_cross([source])
    return backend.attend_source(0, query_CHD.flatten(1)).view(NUM_TOKENS, HEADS[0], HEAD_WIDTH)


def _expected_attention(states: Sequence[Tensor], bias: DistanceBias | None, *, is_causal: bool) -> Tensor:
    query, key, value = (x.float().transpose(0, 1)[None] for x in states)
    places = torch.arange(NUM_TOKENS)
    distances = places - places[:, None]
    mask = torch.zeros(HEADS[0], NUM_TOKENS, NUM_TOKENS) if bias is None else bias.at(distances)
    mask = mask.masked_fill(distances > 0, -torch.inf) if is_causal else mask
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    return out[0].transpose(0, 1)


def _is_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    error = (found.float() - expected).abs().max() / expected.abs().max()
    return bool(error <= TOLERANCE[dtype])  # false where it is NaN
