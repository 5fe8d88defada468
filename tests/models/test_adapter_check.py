"""An adapter that does not fit its base is refused by the tensor and the shapes, by plan as by serve."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BertModel

from server.commands.planned import plan_or_problem
from server.config import ModelConfig
from tests.models.folders import edit, read, refusal, write

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"


@pytest.fixture
def adapter(tmp_path: Path, decoder: Path) -> Path:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(decoder), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def renamed(weights: dict[str, Tensor], name: str, new: str) -> None:
    weights[new] = weights.pop(name)


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "another width": (
        lambda w: w.update({A: torch.zeros(4, 16)}),
        f"{A} has the shape [4, 16], and rank 4 on this base takes [4, ",
    ),
    "another rank": (
        lambda w: w.update({A: torch.zeros(8, w[A].shape[1])}),
        f"{A} has the shape [8, ",
    ),
    "another height": (
        lambda w: w.update({B: torch.zeros(3, 4)}),
        f"{B} has the shape [3, 4], and rank 4 on this base takes [",
    ),
    "integers": (lambda w: w.update({A: w[A].to(torch.int32)}), f"{A} is of type I32"),
    "not a number": (lambda w: w[B].fill_(torch.nan), f"has numbers in {B} that are not finite"),
    "infinite": (lambda w: w[A].view(-1)[:1].fill_(torch.inf), f"has numbers in {A} that are not finite"),
    "unknown layer": (
        lambda w: renamed(w, A, A.replace("layers.0", "layers.99")),
        "is for model.layers.99.self_attn.q_proj, which the base does not have",
    ),
    "half a pair": (lambda w: w.pop(B), f"lacks weights that its config names: {B}"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tensor_that_does_not_fit_is_named(adapter: Path, change: str) -> None:
    alter, said = CHANGES[change]
    weights = load_file(adapter / "adapter_model.safetensors")
    alter(weights)
    save_file(weights, adapter / "adapter_model.safetensors")
    message = refusal(adapter)
    assert said in message
    assert plan_or_problem(ModelConfig(name="tiny", path=str(adapter))) == message


def test_an_adapter_of_another_base_is_refused_by_its_first_layer(
    adapter: Path, tmp_path: Path, bert: BertModel
) -> None:
    from transformers import BertForMaskedLM

    base = write(tmp_path / "bert", BertForMaskedLM(bert.config))
    assert "which the base does not have" in refusal(adapter, base=str(base))


@pytest.mark.parametrize("content", [b"", b"\x08", b"\xff" * 8, b"\x00" * 9, b"\x02\0\0\0\0\0\0\0{}", b"[" * 100])
def test_a_broken_file_is_one_sentence(adapter: Path, content: bytes) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(content)
    assert str(adapter) in refusal(adapter)


@pytest.mark.parametrize(
    "field", [{"r": "four"}, {"r": None}, {"r": 0}, {"target_modules": "("}, {"target_modules": 7}, {"lora_alpha": "x"},
              {"rank_pattern": {"(": 2}}, {"modules_to_save": 7}, {"rank_pattern": 7}, {"lora_alpha": math.inf},
              {"lora_alpha": 10**400}, {"alpha_pattern": {"(": 2}}, {"alpha_pattern": {"q_proj": math.nan}},
              {"exclude_modules": "("}, {"layers_pattern": ["("], "layers_to_transform": [0]},
              {"peft_type": ["LORA"]}, {"task_type": []}, {"base_model_name_or_path": 7}],
)  # fmt: skip
def test_a_broken_config_is_one_sentence(adapter: Path, field: dict[str, Any]) -> None:
    edit(adapter, "adapter_config.json", lambda config: config.update(field))
    refusal(adapter)


def test_rank_patterns_are_read_as_peft_reads_them(tmp_path: Path, decoder: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", rank_pattern={"v_proj": 2})
    get_peft_model(AutoModelForCausalLM.from_pretrained(decoder), config).save_pretrained(tmp_path / "adapter")
    assert read(tmp_path / "adapter").task == "generate"
