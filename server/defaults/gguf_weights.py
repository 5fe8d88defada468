"""A Llama model out of a GGUF file: weights in bfloat16, config, generation config and tokenizer.

Written by hand because the general converter takes a minute, keeps the multi-digit runs that this tokenizer
splits, and names no pre-tokenizer; the weights are bit for bit those of transformers' own conversion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_CONTROL_TOKEN = 3
"""``tokenizer.ggml.token_type`` of a token that no text contains."""

_PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    # llama.cpp's "smollm": each digit alone, then GPT-2's rule.
    "smollm": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}


class GgufModel:
    """One opened GGUF file of architecture ``llama``."""

    def __init__(self, path: Path) -> None:
        self._reader = GGUFReader(path)
        architecture = self._value("general.architecture")
        if architecture != "llama":
            raise ValueError(f"{path.name} holds a {architecture} model: this reader knows llama")

    def __len__(self) -> int:
        return len(self._reader.tensors)

    def _value(self, key: str) -> Any:
        field = self._reader.get_field(key)
        if field is None:
            raise ValueError(f"The GGUF file lacks {key}")
        return field.contents()

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each tensor under its transformers name, in bfloat16."""
        heads = {
            "attn_q": self._value("llama.attention.head_count"),
            "attn_k": self._value("llama.attention.head_count_kv"),
        }
        for tensor in self._reader.tensors:
            name, short = _name(tensor.name)
            values = dequantize(tensor.data, tensor.tensor_type)
            if short in heads:
                values = _split_halves(values, heads[short])
            yield name, torch.tensor(values).to(torch.bfloat16)

    def config(self) -> dict[str, Any]:
        """``config.json``."""
        names = {tensor.name for tensor in self._reader.tensors}
        hidden_size, heads = self._value("llama.embedding_length"), self._value("llama.attention.head_count")
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "head_dim": hidden_size // heads,
            "hidden_act": "silu",
            "hidden_size": hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self._value("llama.feed_forward_length"),
            "max_position_embeddings": self._value("llama.context_length"),
            "mlp_bias": False,
            "num_attention_heads": heads,
            "num_hidden_layers": self._value("llama.block_count"),
            "num_key_value_heads": self._value("llama.attention.head_count_kv"),
            "rms_norm_eps": self._value("llama.attention.layer_norm_rms_epsilon"),
            "rope_parameters": {"rope_theta": self._value("llama.rope.freq_base"), "rope_type": "default"},
            "tie_word_embeddings": "output.weight" not in names,
            "vocab_size": self._value("llama.vocab_size"),
            **self._token_ids(),
        }

    def generation_config(self) -> dict[str, Any]:
        """``generation_config.json``."""
        return self._token_ids()

    def _token_ids(self) -> dict[str, int]:
        return {
            "bos_token_id": self._value("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self._value("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self._value("tokenizer.ggml.padding_token_id"),
        }

    def tokenizer(self) -> dict[str, Any]:
        """``tokenizer.json``: byte-level BPE, with nothing added around a text."""
        tokens, types = self._value("tokenizer.ggml.tokens"), self._value("tokenizer.ggml.token_type")
        name = self._value("tokenizer.ggml.pre")
        if name not in _PRE_TOKENIZERS or self._value("tokenizer.ggml.add_bos_token"):
            raise ValueError(f"The GGUF file's tokenizer ({name}) is not one that this reader knows")
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": index, "content": token, **flags}
                for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
                if kind == _CONTROL_TOKEN
            ],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[name]},
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {token: index for index, token in enumerate(tokens)},
                "merges": [merge.split(" ") for merge in self._value("tokenizer.ggml.merges")],
            },
        }

    def tokenizer_config(self) -> dict[str, Any]:
        """``tokenizer_config.json``."""
        tokens = self._value("tokenizer.ggml.tokens")
        special = {name.removesuffix("_id"): tokens[index] for name, index in self._token_ids().items()}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": self._value("llama.context_length"),
            "unk_token": tokens[self._value("tokenizer.ggml.unknown_token_id")],
            **special,
        }

    def chat_template(self) -> str:
        """``chat_template.jinja``."""
        return str(self._value("tokenizer.chat_template"))

    def write_text_files(self, folder: Path) -> None:
        """Everything of the model folder but the weights."""
        for name, content in {
            "config.json": self.config(),
            "generation_config.json": self.generation_config(),
            "tokenizer.json": self.tokenizer(),
            "tokenizer_config.json": self.tokenizer_config(),
        }.items():
            text = json.dumps(content, indent=None if name == "tokenizer.json" else 2, ensure_ascii=False)
            (folder / name).write_text(text + "\n", encoding="utf-8")
        (folder / "chat_template.jinja").write_text(self.chat_template(), encoding="utf-8")


def _name(gguf_name: str) -> tuple[str, str]:
    """A tensor's name in transformers, and its kind in GGUF.

    >>> _name("blk.3.attn_q.weight")
    ('model.layers.3.self_attn.q_proj.weight', 'attn_q')
    """
    stem = gguf_name.removesuffix(".weight")
    if block := re.fullmatch(r"blk\.(\d+)\.(\w+)", stem):
        return f"model.layers.{block[1]}.{_NAMES[block[2]]}.weight", block[2]
    return f"{_NAMES[stem]}.weight", stem


def _split_halves(weights: NDArray[Any], num_heads: int) -> NDArray[Any]:
    """Undo GGUF's order of a head's rows: rotary pairs lie next to each other there, half a head apart here."""
    rows, columns = weights.shape
    return weights.reshape(num_heads, rows // num_heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
