"""Layers whose additions are one step with the next norm compute what they computed before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine.executors.generic import probe
from server.modules import products
from server.modules.attention import LayerSpec
from server.modules.attention_calls import ATTENTION, set_attention
from server.modules.operations import Normalise, Operation, operations, run
from server.modules.recognise import recognise
from server.modules.summed import SumAndNorm, summed
from tests.tiny_models import tiny_decoder

torch.set_num_threads(1)


def layers_of(family: str) -> list[tuple[Operation, ...]]:
    module = tiny_decoder(family)
    set_attention(module, ATTENTION)
    layout = recognise(module, probe(module), [64])
    packed = [products.pack_layer(layer) for layer in layout.layers]
    return [operations(layer, index) for index, layer in enumerate(packed)]


def attend(layer: int, attention: Any, qkv_TX: Tensor) -> Tensor:
    """Something that depends on all of its input."""
    spec: LayerSpec = attention.spec
    values = qkv_TX.cumsum(1) / (2 + layer)
    return torch.cat([values] * 3, dim=1)[:, : spec.attended_width]


def results(layers: list[tuple[Operation, ...]], x_TD: Tensor, wanted_R: Tensor | None) -> Tensor:
    hidden, read = x_TD, x_TD
    for layer in layers[:-1]:
        hidden, read = run(layer, hidden, attend, read_TX=read)

    def attend_wanted(*given: Any) -> Tensor:
        return attend(*given) if wanted_R is None else attend(*given)[wanted_R]

    return run(layers[-1], hidden, attend_wanted, read_TX=read, wanted_R=wanted_R)[0]


@pytest.mark.parametrize("wanted", [None, [1, 4], []], ids=["all", "some", "none"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gpt_neox", "phi", "gemma2"])
@torch.inference_mode()
def test_an_addition_that_is_left_to_the_next_norm_changes_nothing(family: str, wanted: list[int] | None) -> None:
    layers = layers_of(family)
    found = summed(layers)
    width = next(each.width for each in layers[0] if isinstance(each, Normalise))
    x_TD = torch.randn(5, width, generator=torch.Generator().manual_seed(0))
    wanted_R = None if wanted is None else torch.tensor(wanted, dtype=torch.int64)
    torch.testing.assert_close(results(found, x_TD, wanted_R), results(layers, x_TD, wanted_R), rtol=1e-5, atol=1e-6)


def test_only_the_first_norm_of_a_plain_decoder_stands_alone() -> None:
    found = [operation for layer in summed(layers_of("llama")) for operation in layer]
    assert [operation for operation in found if isinstance(operation, Normalise)] == [found[0]]
    assert sum(isinstance(operation, SumAndNorm) for operation in found) == 3
