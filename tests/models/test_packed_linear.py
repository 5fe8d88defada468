"""Packed linears give what plain ones give, whatever the batch."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from server.models.packed_linear import pack_linears
from server.native.linear import Linear
from tests.tiny_models import tiny_decoder

torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_a_packed_linear_equals_the_plain_one(dtype: torch.dtype, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    plain = (nn.Linear(80, 48) if kind is nn.Linear else Conv1D(48, 80)).to(dtype)
    holder = nn.Sequential(plain)
    assert pack_linears(holder) == 1
    assert isinstance(holder[0], Linear)
    for shape in ((80,), (1, 80), (1, 1, 80), (2, 7, 80), (0, 80)):
        x = torch.randn(shape).to(dtype)
        with torch.inference_mode():
            torch.testing.assert_close(holder(x), plain(x), rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-2)


def test_packing_frees_the_weight_and_leaves_a_tied_embedding_alone() -> None:
    module = tiny_decoder("gpt2")
    weights = sum(parameter.numel() for parameter in module.parameters())
    embedding = module.get_input_embeddings().weight
    num_linears = sum(isinstance(part, nn.Linear | Conv1D) for part in module.modules())
    assert pack_linears(module) == num_linears
    assert module.get_input_embeddings().weight is embedding
    assert sum(parameter.numel() for parameter in module.parameters()) < weights


def test_subclasses_are_left_as_they_are() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    assert pack_linears(nn.Sequential(Scaled(8, 8))) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_reads_a_packed_linears_weight_gets_the_plain_one(dtype: torch.dtype) -> None:
    plain = nn.Linear(333, 70).to(dtype)
    holder = nn.Sequential(plain)
    assert pack_linears(holder) == 1
    assert torch.equal(holder[0].weight, plain.weight)


def test_a_linear_without_outputs_stays_plain() -> None:
    with warnings.catch_warnings(action="ignore"):
        empty = nn.Linear(8, 0)
    assert pack_linears(nn.Sequential(empty)) == 0
