"""Random, seeded decoder folders of every family, small enough to run in milliseconds.

The weights are larger than a real initialisation: logits differ by whole units, so that greedy choices have clear
margins and depend on the context.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

CORPUS = """
The river runs past the mill and the miller counts the sacks of flour. Every morning the carts come down the hill,
and every evening they go back up again. "How much for a sack?" asks the baker. "Eleven pence", says the miller,
"and not a penny less!" In 1887 the price was 9.50, in 1912 it was 12.75; nobody remembers why. The quick brown fox
jumps over the lazy dog, while the children play and sing near the old stone bridge.
今天天气很好，我们去公园散步。河边的磨坊已经很旧了。你好，世界！
مرحبا بالعالم، النهر يجري بجانب الطاحونة القديمة.
😀🚀 Über den Flüssen — naïve cafés 👨‍👩‍👧 ❤️ 🇩🇪
"""
NUM_TOKENS = 384
VOCAB_SIZE = 400
"""Wider than the tokenizer, as in many real models; the ids above it have zero weights and are never chosen."""
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
BOS_ID, EOS_ID, PAD_ID = 0, 1, 2
MAX_MODEL_LEN = 512
SLIDING_WINDOW = 8
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

_IDS = {"vocab_size": VOCAB_SIZE, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
_ROTARY = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_MODEL_LEN,
    "tie_word_embeddings": False,
}
_LOCAL_AND_GLOBAL = {"sliding_window": SLIDING_WINDOW, "layer_types": ["sliding_attention", "full_attention"]}

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": MAX_MODEL_LEN},
    "llama": _ROTARY,
    "mistral": {**_ROTARY, "sliding_window": SLIDING_WINDOW},
    "qwen2": _ROTARY,
    "qwen3": {**_ROTARY, "head_dim": 16},
    "gemma": {**_ROTARY, "head_dim": 16},
    "gemma2": {**_ROTARY, **_LOCAL_AND_GLOBAL, "head_dim": 16, "query_pre_attn_scalar": 16,
               "attn_logit_softcapping": 20.0, "final_logit_softcapping": 30.0},
    "gemma3_text": {**_ROTARY, **_LOCAL_AND_GLOBAL, "head_dim": 16, "query_pre_attn_scalar": 16},
    "phi": {**_ROTARY, "partial_rotary_factor": 0.5},
    "phi3": _ROTARY,
    "stablelm": {**_ROTARY, "partial_rotary_factor": 0.5},
    "opt": {"hidden_size": 48, "word_embed_proj_dim": 48, "ffn_dim": 80, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": MAX_MODEL_LEN},
    "gpt_neox": {k: v for k, v in _ROTARY.items() if k != "num_key_value_heads"},
    "bloom": {"hidden_size": 48, "n_layer": 2, "n_head": 4},
}  # fmt: skip
"""Model type -> the config fields that make it tiny."""


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on `CORPUS`: any string round-trips, many characters take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TOKENS,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_config(family: str) -> PreTrainedConfig:
    return AutoConfig.for_model(family, **_IDS, **FAMILIES[family])


def scramble(module: PreTrainedModel, seed: int) -> None:
    """Fill every weight from ``seed``, wide enough for clear margins, with no bias or norm left at its default."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:
                parameter.add_(0.1 * noise)
            elif "embed" in name or "wte" in name or "wpe" in name:
                parameter.copy_(0.3 * noise)
            else:
                gain = 3.0 if parameter.shape[0] == VOCAB_SIZE or module.config.tie_word_embeddings else 1.2
                parameter.copy_(gain / math.sqrt(module.config.hidden_size) * noise)
            if parameter.shape[0] == VOCAB_SIZE:
                parameter[NUM_TOKENS:] = 0


def tiny_decoder(family: str, seed: int = 0) -> PreTrainedModel:
    """The model that `write_tiny_decoder` writes, in float32 and eval mode."""
    module = AutoModelForCausalLM.from_config(tiny_config(family), dtype=torch.float32)
    scramble(module, seed)
    module.generation_config = GenerationConfig(bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID)
    return module.eval()


def lengthwise_decoder(kind: str, seed: int = 0, switch: int = 64, **fields: Any) -> PreTrainedModel:
    """One whose rotary factors follow from a sequence's length, from ``switch`` tokens on; ``kind`` is the type."""
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    family, limit = "llama", switch
    if kind == "longrope":
        half = fields.get("hidden_size", 48) // 8
        rope |= {"short_factor": [1.0] * half, "long_factor": [1.0 + 2 * i for i in range(half)]}
        rope |= {"original_max_position_embeddings": switch}
        family, limit = "phi3", 8 * switch
        fields["original_max_position_embeddings"] = switch
    settings = {**FAMILIES[family], "max_position_embeddings": limit, "rope_parameters": rope, **fields}
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **_IDS, **settings), dtype=torch.float32)
    scramble(module, seed)
    module.generation_config = GenerationConfig(bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID)
    return module.eval()


def write_tiny_decoder(folder: Path, family: str, seed: int = 0) -> Path:
    """Write weights, config, generation_config and tokenizer; the same seed writes the same model."""
    tiny_decoder(family, seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
