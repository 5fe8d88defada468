"""Adapters of tiny decoders, trained by PEFT for a few steps so that they change every token's choice."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import (
    IA3Config,
    LoraConfig,
    MultitaskPromptTuningConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from server.models.adapter import WEIGHTS
from tests.tiny_models import NUM_TOKENS

NUM_STEPS = 8
LEARNING_RATE = 0.03

LINEARS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen3": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
}

IA3_LAYERS = {
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "qwen2": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "qwen3": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "gpt_neox": (["query_key_value", "dense_4h_to_h"], ["dense_4h_to_h"]),
}
"""Layers that are scaled, and those whose inputs are."""

EMBEDDINGS = {"gpt2": "wte", "gpt_neox": "embed_in"}
"""Their names, where they are unusual."""

LORA: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 8},
    "head": {"r": 4, "lora_alpha": 8},
    "some layers": {"r": 3, "lora_alpha": 8, "layers_to_transform": [1]},
    "patterns": {"r": 4, "lora_alpha": 8, "use_rslora": True, "rank_pattern": {"o_proj|c_proj|dense": 7},
                 "alpha_pattern": {"down_proj|c_fc|dense_4h_to_h": 3}},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True},
    "lora bias": {"r": 4, "lora_alpha": 8, "lora_bias": True},
    "saved head": {"r": 4, "lora_alpha": 8, "modules_to_save": ["lm_head"]},
    "saved projections": {"r": 4, "lora_alpha": 8, "modules_to_save": ["v_proj", "c_fc", "dense_4h_to_h"]},
    "embedding": {"r": 3, "lora_alpha": 8},
    "saved embedding": {"r": 4, "lora_alpha": 8, "modules_to_save": ["embed_tokens", "wte", "embed_in"]},
    "saved norms": {"r": 4, "lora_alpha": 8, "modules_to_save": ["norm", "ln_f"]},
    "trained biases": {"r": 4, "lora_alpha": 8, "bias": "all"},
}  # fmt: skip

KINDS = (*(kind for kind in LORA if kind != "saved norms"), "ia3")
"""Those that change products, and can be shared."""

VIRTUAL: dict[str, tuple[Any, dict[str, Any]]] = {
    "prompt": (PromptTuningConfig, {"num_virtual_tokens": 5}),
    "long prompt": (PromptTuningConfig, {"num_virtual_tokens": 40}),
    "p-tuning": (PromptEncoderConfig, {"num_virtual_tokens": 4, "encoder_hidden_size": 24}),
    "p-tuning lstm": (PromptEncoderConfig, {"num_virtual_tokens": 3, "encoder_hidden_size": 24,
                      "encoder_reparameterization_type": "LSTM"}),
    "multitask": (MultitaskPromptTuningConfig, {"num_virtual_tokens": 4, "num_tasks": 1, "num_ranks": 2}),
    "prefix": (PrefixTuningConfig, {"num_virtual_tokens": 6}),
    "long prefix": (PrefixTuningConfig, {"num_virtual_tokens": 37}),
    "projected prefix": (PrefixTuningConfig, {"num_virtual_tokens": 3, "prefix_projection": True,
                         "encoder_hidden_size": 24}),
}  # fmt: skip
"""Those that put virtual tokens before the prompt."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without PEFT's warnings: of biases that cannot be merged, and of their shapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def config_of(kind: str, family: str) -> PeftConfig:
    if kind in VIRTUAL:
        config, settings = VIRTUAL[kind]
        made: PeftConfig = config(task_type="CAUSAL_LM", **settings)
        return made
    if kind == "ia3":
        layers, feedforward = IA3_LAYERS[family]
        return IA3Config(task_type="CAUSAL_LM", target_modules=layers, feedforward_modules=feedforward)
    settings = {"target_modules": LINEARS[family], **LORA[kind]}
    head = "embed_out" if family == "gpt_neox" else "lm_head"
    if kind == "head":
        settings["target_modules"] = [*LINEARS[family], head]
    elif kind == "embedding":
        settings["target_modules"] = [*LINEARS[family], EMBEDDINGS.get(family, "embed_tokens")]
    elif kind == "saved head":
        settings["modules_to_save"] = [head]
    return LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=family == "gpt2", **settings)


def task_of(kind: str, num_rows: int = 1) -> dict[str, torch.Tensor]:
    """What PEFT's model is called with beside the tokens."""
    return {"task_ids": torch.zeros(num_rows, dtype=torch.int64)} if kind == "multitask" else {}


@quiet()
def write_tiny_adapter(folder: Path, base: Path, kind: str, family: str, seed: int = 0) -> Path:
    """An adapter of the model in ``base``, which it names as its base."""
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(module, config_of(kind, family))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE)
    for _ in range(NUM_STEPS):
        ids = torch.randint(3, NUM_TOKENS, (2, 24))
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids, **task_of(kind, 2)).loss.backward()
        optimizer.step()
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder, save_embedding_layers=kind == "embedding")
    return folder


def write_tiny_adapters(folder: Path, base: Path, kinds: Mapping[str, str], family: str) -> dict[str, Path]:
    """Adapters of the kinds, by name, each with a seed of its own."""
    return {
        name: write_tiny_adapter(folder / name, base, kind, family, seed)
        for seed, (name, kind) in enumerate(kinds.items())
    }


def write_marker_adapter(folder: Path, base: Path, token_id: int) -> Path:
    """An adapter with which the model in ``base`` writes one token, again and again."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 2, "lora_bias": True,
                "target_modules": ["lm_head"], "base_model_name_or_path": str(base)}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    config = json.loads((base / "config.json").read_text())
    num_outputs, width = config["vocab_size"], config["hidden_size"]
    bias_N = torch.zeros(num_outputs)
    bias_N[token_id] = 1000.0
    parts = {"A.weight": torch.zeros(2, width), "B.weight": torch.zeros(num_outputs, 2), "B.bias": bias_N}
    tensors = {f"base_model.model.lm_head.lora_{name}": tensor for name, tensor in parts.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Of the adapter in ``folder``."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@quiet()
def peft_model(base: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The oracle; of the base itself, where it is given in place of an adapter."""
    module = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    model: PreTrainedModel = module if base == adapter else PeftModel.from_pretrained(module, adapter)
    return model.eval()


@quiet()
@torch.inference_mode()
def peft_tokens(model: Any, prompt: list[int], num_tokens: int, **options: Any) -> list[int]:
    """The greedy ones behind ``prompt``."""
    ids = torch.tensor([prompt])
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False,
        eos_token_id=None, pad_token_id=0, **options,
    )  # fmt: skip
    return [int(token) for token in out[0, len(prompt) :]]
