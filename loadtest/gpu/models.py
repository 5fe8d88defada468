"""Models with random weights: shapes of known ones for speed, and a few layers of every family for correctness."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from gpu.setting import Setting

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
VOCAB_SIZE = 1000
"""Of the families."""
MAX_LEN = 1024
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

SHARED = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8}
GROUPED = {**SHARED, "num_key_value_heads": 2, "max_position_embeddings": MAX_LEN}
LOCAL = {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"] * 2}
SOFTCAP = {"query_pre_attn_scalar": 64, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 30.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 128},
    "mistral": {**GROUPED, "sliding_window": 32},
    "gemma2": {**GROUPED, **LOCAL, **SOFTCAP, "head_dim": 64},
    "gpt2": {"n_embd": 512, "n_layer": 4, "n_head": 8, "n_positions": MAX_LEN},
    "gpt_neox": {**SHARED, "max_position_embeddings": MAX_LEN},
    "phi3": GROUPED,
    "opt": {"hidden_size": 512, "word_embed_proj_dim": 512, "ffn_dim": 1024, "num_hidden_layers": 4,
            "num_attention_heads": 8, "max_position_embeddings": MAX_LEN},
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "falcon": {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "alibi": True},
}  # fmt: skip
TINY = ("llama", "gemma2", "gpt2", "falcon")

WEIGHT_SPREAD = 2.0
"""Wider than a real initialisation: logits differ by whole units and follow from the context."""


SMALLER = {"hidden_size": 64, "n_embd": 64, "word_embed_proj_dim": 64, "intermediate_size": 128, "ffn_dim": 128,
           "head_dim": 16}  # fmt: skip
"""With these a family tries the script and nothing else."""


def family(setting: Setting, name: str) -> PreTrainedModel:
    """In float32 on the CPU, the same at every call."""
    fields = FAMILIES[name]
    if setting.is_tiny:
        fields = {**fields, **{key: size for key, size in SMALLER.items() if key in fields}}
    config = AutoConfig.for_model(name, vocab_size=VOCAB_SIZE, **IDS, **fields)
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(WEIGHT_SPREAD)
    return module.eval()


def small(setting: Setting) -> PreTrainedConfig:
    """SmolLM2-135M's shape."""
    if setting.is_tiny:
        return LlamaConfig(vocab_size=VOCAB_SIZE, **IDS, **{**GROUPED, "num_hidden_layers": 2, "hidden_size": 128})
    return LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        **IDS,
    )


def medium(setting: Setting) -> PreTrainedConfig:
    """Qwen2.5-0.5B's shape."""
    if setting.is_tiny:
        return small(setting)
    return Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        **IDS,
    )


def large(setting: Setting) -> PreTrainedConfig:
    """Eight layers of Llama-3-8B's shape."""
    if setting.is_tiny:
        return small(setting)
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=8,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        **IDS,
    )


def made(config: PreTrainedConfig, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """Drawn on the device."""
    torch.manual_seed(0)
    with device:
        module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return module.eval()


def decoder_folder(setting: Setting, device: torch.device) -> Path:
    """`small` on disk, with a tokenizer."""
    folder = setting.folder / "models" / f"decoder-{'tiny' if setting.is_tiny else '135m'}"
    if not (folder / "tokenizer.json").exists():
        made(small(setting), device).cpu().save_pretrained(folder)
        write_tokenizer(setting, folder)
    return folder


def encoder_folder(setting: Setting) -> Path:
    """BERT's base shape with three labels."""
    folder = setting.folder / "models" / f"encoder-{'tiny' if setting.is_tiny else 'base'}"
    if not (folder / "tokenizer.json").exists():
        size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
        torch.manual_seed(0)
        config = BertConfig(vocab_size=50_000, num_labels=3, pad_token_id=0, **setting.pick({}, size))
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        write_tokenizer(setting, folder)
    return folder


def write_tokenizer(setting: Setting, folder: Path) -> None:
    """The tokenizer that was given, if its ids fit the model, else one of bytes."""
    source = setting.tokenizer / "tokenizer.json"
    vocab_size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    if source.exists() and Tokenizer.from_file(str(source)).get_vocab_size() <= vocab_size:
        for name in TOKENIZER_FILES:
            if (setting.tokenizer / name).exists():
                shutil.copyfile(setting.tokenizer / name, folder / name)
        return
    letters = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    # Words that no text has, so that every id has a text of its own.
    letters += [f"\u0120{i}" for i in range(len(letters), vocab_size)]
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
