"""What a worker says of its weights' size is what it holds of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from server.config import ModelConfig
from server.engine.executors import build_runner
from server.native import kernels
from server.worker.__main__ import build
from tests.tiny_models import tiny_decoder, write_tiny_decoder

torch.set_num_threads(1)

PADDING = 1.3
"""Packed weights of tiny models have rows that are not the model's."""


@pytest.fixture(autouse=True)
def _native() -> None:
    if kernels.use("auto", 1) == "torch" or not kernels.has("linear"):
        pytest.skip("no kernels for this processor")


def told(folder: Path, **settings: object) -> tuple[int, int]:
    """Bytes of the weights, and how many numbers the model has."""
    config = ModelConfig(name="m", path=str(folder), kv_cache_gib=0.02, **settings)  # type: ignore[arg-type]
    _, ready = build(config)
    return ready.weight_bytes, ready.num_parameters


@pytest.mark.parametrize("executor", ["fused", "generic"])
def test_a_decoders_weights_take_what_their_width_says(tiny_llama: Path, executor: str) -> None:
    plain, num_parameters = told(tiny_llama, dtype="float32", executor=executor)
    assert 4 * num_parameters <= plain < PADDING * 4 * num_parameters
    half, _ = told(tiny_llama, dtype="bfloat16", executor=executor)
    assert 2 * num_parameters <= half < PADDING * 2 * num_parameters
    quantised, _ = told(tiny_llama, dtype="bfloat16", executor=executor, quantize="int8")
    # The embedding keeps its bits.
    assert num_parameters < quantised < 0.9 * half


def test_an_encoders_weights_take_what_their_width_says(tiny_classifier: Path) -> None:
    plain, num_parameters = told(tiny_classifier)
    assert 4 * num_parameters <= plain < PADDING * 4 * num_parameters
    quantised, _ = told(tiny_classifier, quantize="int8")
    assert num_parameters < quantised < plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_table_that_is_also_the_head_is_held_once(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = write_tiny_decoder(tmp_path, "gpt2")
    size, num_parameters = told(folder, dtype=str(dtype).removeprefix("torch."))
    assert size < PADDING * dtype.itemsize * num_parameters
    module = tiny_decoder("gpt2").to(dtype)
    table = module.get_input_embeddings().weight
    expected = table.detach().clone()
    runner = build_runner(module, ModelConfig(name="m", path="unused", kv_cache_gib=0.02), 64)
    assert runner.name == "fused" and not table.numel()
    ids = torch.tensor([5, 0, 399, 47, 48, 5])
    assert torch.equal(runner._decoder.embedding.table_VD.rows(ids), expected[ids])  # type: ignore[attr-defined]


def test_a_plain_table_that_is_also_the_head_is_counted_once(tmp_path: Path) -> None:
    """As on a GPU: no kernel packs float16."""
    size, num_parameters = told(write_tiny_decoder(tmp_path, "gpt2"), dtype="float16", executor="fused")
    assert 0.98 * 2 * num_parameters < size < 1.02 * 2 * num_parameters
