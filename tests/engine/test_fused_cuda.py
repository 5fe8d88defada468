"""A whole step of the fused executor over CUDA tensors that hold nothing: it never waits for the device."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from server.engine.attention.torch_native import TorchNativeAttention
from server.engine.batch_inputs import Row
from server.engine.executors.fused.runner import FusedRunner
from server.engine.executors.generic import probe
from server.modules.attention_calls import ATTENTION, set_attention
from server.modules.layout import Product
from server.modules.recognise import recognise
from server.native.linear import Linear
from tests.engine.test_runner_build import cuda_in_name
from tests.tiny_models import VOCAB_SIZE, tiny_decoder

__all__ = ["cuda_in_name"]

torch.set_num_threads(1)


def on_fake_device(value: Any, device: torch.device) -> Any:
    """A layout with every tensor on ``device`` and every product packed there. For `FakeTensorMode`."""
    if isinstance(value, torch.Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device=device)
    if isinstance(value, Product):
        sizes = [linear.weight.shape for linear in value.linears]
        transposed = any(hasattr(linear, "nf") for linear in value.linears)
        num_rows = sum(size[1] if transposed else size[0] for size in sizes)
        weight = torch.empty(num_rows, sizes[0][0] if transposed else sizes[0][1], device=device)
        bias = None if value.linears[0].bias is None else torch.empty(num_rows, device=device)
        return Linear(weight, bias, activation=value.activation, is_gated=value.is_gated)
    if isinstance(value, tuple):
        return tuple(on_fake_device(part, device) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: on_fake_device(part, device) for name, part in fields.items()})
    return value


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "gpt_neox", "phi3"])
@pytest.mark.usefixtures("cuda_in_name")
def test_the_whole_fused_step_traces_with_cuda_tensors(family: str) -> None:
    module = tiny_decoder(family)
    set_attention(module, ATTENTION)
    layout = recognise(module, probe(module), [64])
    device = torch.device("cuda", 0)
    # Host arrays become tensors through numpy, which fake tensors let through as they are.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        decoder = on_fake_device(layout, device)
        backend = TorchNativeAttention(layout.specs, 64, 4, torch.float32, device)
        runner = FusedRunner(decoder, backend, num_blocks=64, block_size=4, vocab_size=VOCAB_SIZE)
        rows = [
            Row(key=0, token_ids=[1, 2, 3, 4, 5], num_computed=0, block_table=[0, 1]),
            Row(key=1, token_ids=[9], num_computed=6, block_table=[2, 3]),
            Row(key=2, token_ids=[9, 8], num_computed=30, block_table=range(10, 18), num_logits=2),
        ]
        for batch in (rows, rows[1:2], rows[:1]):
            logits = runner.forward(batch)
            assert logits.device == device
            assert logits.shape == (sum(row.num_logits for row in batch), VOCAB_SIZE)
