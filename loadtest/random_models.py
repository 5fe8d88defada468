"""Models of well-known shapes with random weights: speed does not depend on what the weights are.

They are written once, beside the results. Their tokenizer is the default model's, with made-up words up to the
model's vocabulary, so that each token that is drawn has a text.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from arguments import DEFAULT_MODEL
from report import RESULTS
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    MarianConfig,
    PreTrainedConfig,
    Qwen2Config,
)

FOLDER = RESULTS / "random-models"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def qwen2() -> PreTrainedConfig:
    """Qwen2.5-0.5B."""
    return Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def gpt2() -> PreTrainedConfig:
    """GPT-2, 124 million parameters."""
    return GPT2Config(bos_token_id=1, eos_token_id=2, pad_token_id=2)


def opus_mt() -> PreTrainedConfig:
    """The base shape of OPUS-MT's translators. Token 0 ends an output, the last one is padding and starts it."""
    last = 58_100
    return MarianConfig(
        vocab_size=last + 1,
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        max_position_embeddings=512,
        activation_function="swish",
        scale_embedding=True,
        eos_token_id=0,
        pad_token_id=last,
        decoder_start_token_id=last,
    )


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {"qwen2-0.5b": qwen2, "gpt2-124m": gpt2}
TRANSLATORS: dict[str, Callable[[], PreTrainedConfig]] = {"opus-mt-base": opus_mt}


def folder_of(name: str, tokenizer_from: str = DEFAULT_MODEL) -> Path:
    """Where the model lies; it is made at the first call."""
    folder = FOLDER / name
    if (folder / "model.safetensors").exists():
        return folder
    FOLDER.mkdir(parents=True, exist_ok=True)
    unfinished = FOLDER / f"{name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    torch.manual_seed(0)
    config = (CONFIGS | TRANSLATORS)[name]()
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = kind.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(unfinished)
    # An encoder-decoder has a start token of its own.
    names = TOKENIZER_FILES if config.is_encoder_decoder else (*TOKENIZER_FILES, "generation_config.json")
    _write_tokenizer(Path(tokenizer_from), unfinished, config.vocab_size, names)
    unfinished.rename(folder)
    return folder


def _write_tokenizer(source: Path, target: Path, vocab_size: int, names: Sequence[str]) -> None:
    for name in names:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    path = target / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    # The first letter of GPT-2's alphabet of bytes for a space, then the id: in no text, so no prompt has it.
    words |= {f"\u0120{i}": i for i in range(len(words), vocab_size)}
    path.write_text(json.dumps(content))
