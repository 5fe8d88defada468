"""The reference for runners in 16 bits: the module's own logits in float32, of the same weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from server.engine import source_check
from server.engine.in_float32 import in_float32
from tests.tiny_encoder_decoders import tiny_encoder_decoder

SOURCE_IDS, TARGET_IDS = list(range(5, 45)), list(range(7, 30))


def logits(module: Any) -> torch.Tensor:
    with torch.inference_mode():
        return source_check._plain_logits(module, SOURCE_IDS, TARGET_IDS)


@pytest.mark.parametrize("family", ["t5-1.1", "bart", "marian", "switch_transformers", "t5gemma", "encoder-decoder"])
def test_weights_of_16_bits_give_the_logits_of_a_float32_copy(family: str) -> None:
    module = tiny_encoder_decoder(family).to(torch.bfloat16)
    plain = logits(module)
    with in_float32(module):
        exact = logits(module)
    assert torch.equal(exact, logits(copy.deepcopy(module).float()))
    assert not torch.equal(exact, plain)
    assert torch.equal(logits(module), plain)


def test_weights_come_back_when_a_layer_fails() -> None:
    module = tiny_encoder_decoder("t5").to(torch.bfloat16)
    before = {name: parameter.data_ptr() for name, parameter in module.named_parameters()}
    with pytest.raises(RuntimeError), in_float32(module):
        module(input_ids=torch.zeros(1, 3, dtype=torch.int64), encoder_outputs=(torch.zeros(1, 3, 7),),
               decoder_input_ids=torch.zeros(1, 2, dtype=torch.int64))  # fmt: skip
    assert {name: parameter.data_ptr() for name, parameter in module.named_parameters()} == before
    assert module.dtype == torch.bfloat16
