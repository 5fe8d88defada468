"""Layers as one chain of kernels: bitwise what the kernels give one by one, for layouts that can be one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from server.engine.executors import build_runner
from server.engine.executors.fused import FusedRunner
from server.native import kernels
from server.native.linear import Linear
from tests.engine.test_fused import LAYOUTS, MAX_MODEL_LEN, config, decoder, plain_logits, run

WIDE = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
"""Heads as wide as our attention needs them."""
CHAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "biases": ("llama", {**LAYOUTS["biases"][1], **WIDE}),
    "tied": ("llama", {**WIDE, "tie_word_embeddings": True}),
    "windows in some layers": ("qwen2", {**LAYOUTS["windows in some layers"][1], **WIDE}),
    "norms of heads": ("qwen3", {**WIDE, "head_dim": 32}),
    "norms after the parts, two rotary tables": ("gemma3_text", LAYOUTS["two rotary tables"][1]),
    "layers without positions": ("smollm3", {**LAYOUTS["layers without positions"][1], **WIDE}),
    "layer norms, plain MLP": ("starcoder2", {**LAYOUTS["layer norms, plain MLP"][1], **WIDE}),
    "parallel parts": ("gpt_neox", {**WIDE, "rotary_pct": 0.5}),
    "one norm for both parts": ("stablelm", {**LAYOUTS["one norm for both parts"][1], **WIDE}),
    "learned positions": ("gpt2", {**WIDE, "n_layer": 2, "n_positions": 128, "n_inner": 96}),
}
UNCHAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "multipliers": ("granite", {**LAYOUTS["multipliers"][1], **WIDE}),
    "norms of all heads": ("olmo2", WIDE),
}


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    kernels.use("auto", 2)
    if not kernels.has("chain"):
        kernels.use("torch", 1)
        pytest.skip("no kernels for this processor that make a chain")
    yield
    kernels.use("torch", 1)


def runner_of(layout: tuple[str, dict[str, Any]], dtype: torch.dtype, **settings: object) -> FusedRunner:
    fields = {"executor": "fused", "block_size": 32, **settings}
    runner = build_runner(decoder(*layout, dtype), config(**fields), MAX_MODEL_LEN)
    assert isinstance(runner, FusedRunner)
    return runner


def one_by_one(runner: FusedRunner) -> FusedRunner:
    runner._chained = None
    return runner


@pytest.mark.parametrize("layout", CHAINED)
@pytest.mark.parametrize(
    ("dtype", "quantize"),
    [(torch.float32, "none"), (torch.bfloat16, "none"), (torch.bfloat16, "int8"), (torch.float32, "int8")],
)
def test_a_chain_gives_the_bits_that_its_kernels_give_one_by_one(
    layout: str, dtype: torch.dtype, quantize: str
) -> None:
    runner = runner_of(CHAINED[layout], dtype, quantize=quantize)
    assert runner._chained is not None
    chained = run(runner)
    plain = run(one_by_one(runner))
    for ours, theirs in zip(chained, plain, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(logits, theirs[place]) for place, logits in ours.items())


@pytest.mark.parametrize("layout", CHAINED)
def test_a_chain_gives_transformers_logits(layout: str) -> None:
    expected = plain_logits(decoder(*CHAINED[layout]))
    for ours, theirs in zip(run(runner_of(CHAINED[layout], torch.float32)), expected, strict=True):
        for place, logits in ours.items():
            assert float((logits - theirs[place]).abs().max()) < 1e-4 * float(theirs.max() - theirs.min())


@pytest.mark.parametrize("layout", UNCHAINED)
def test_layers_that_do_more_than_kernels_run_one_by_one(layout: str) -> None:
    assert runner_of(UNCHAINED[layout], torch.float32)._chained is None


def test_four_bit_weights_are_part_of_a_chain() -> None:
    layout = ("llama", {**WIDE, "intermediate_size": 96})
    runner = runner_of(layout, torch.bfloat16, quantize="int4")
    assert runner._chained is not None
    chained, plain = run(runner), run(one_by_one(runner))
    assert all(torch.equal(a[place], b[place]) for a, b in zip(chained, plain, strict=True) for place in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_of_another_dtype_follows_a_chain(dtype: torch.dtype) -> None:
    other = {torch.float32: torch.bfloat16, torch.bfloat16: torch.float32}[dtype]
    runner = runner_of(CHAINED["biases"], dtype)
    decoder = runner._decoder
    decoder = dataclasses.replace(decoder, head=Linear(decoder.head.dense_weight().to(other)))
    sizes = {"num_blocks": runner.num_blocks, "block_size": runner.block_size, "vocab_size": runner.vocab_size}
    runner = FusedRunner(decoder, runner.backend, **sizes)
    assert runner._chained is not None
    chained, plain = run(runner), run(one_by_one(runner))
    assert all(torch.equal(a[place], b[place]) for a, b in zip(chained, plain, strict=True) for place in a)
