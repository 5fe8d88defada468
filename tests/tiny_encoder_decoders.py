"""Random, seeded encoder-decoder folders of many families, small enough to run in milliseconds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    BertConfig,
    EncoderDecoderConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests.tiny_models import EOS_ID, MAX_MODEL_LEN, NUM_TOKENS, PAD_ID, VOCAB_SIZE, tiny_tokenizer

MAX_LEN = MAX_MODEL_LEN
COUNTS_PADDING = ("m2m_100", "nllb-moe", "fsmt")
"""Families that give padding no position, so that they cannot start with it."""

_IDS = {
    "vocab_size": VOCAB_SIZE,
    "bos_token_id": 0,
    "eos_token_id": EOS_ID,
    "pad_token_id": PAD_ID,
    "decoder_start_token_id": PAD_ID,
    "forced_eos_token_id": None,
}
_BART = {
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 80,
    "max_position_embeddings": MAX_LEN,
}
_T5 = {"d_model": 48, "d_kv": 12, "d_ff": 80, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
_T5_1_1 = {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_PROPHETNET = {
    "hidden_size": 48,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 80,
    "num_buckets": 8,
    "relative_max_distance": 16,
    "max_position_embeddings": MAX_LEN,
    "pad_token_id": 0,
}
_BERT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": MAX_LEN,
}
_GEMMA = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "max_position_embeddings": MAX_LEN,
    "sliding_window": 8,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", _T5),
    "t5-1.1": ("t5", _T5_1_1),
    "mt5": ("mt5", _T5_1_1),
    "umt5": ("umt5", _T5_1_1),
    "bart": ("bart", _BART),
    "mbart": ("mbart", {**_BART, "scale_embedding": True}),
    "marian": ("marian", {**_BART, "scale_embedding": True}),
    "marian, two vocabularies": ("marian", {**_BART, "decoder_vocab_size": VOCAB_SIZE - 8, "tie_word_embeddings": False,
                                            "share_encoder_decoder_embeddings": False}),
    "pegasus": ("pegasus", {**_BART, "scale_embedding": True}),
    "m2m_100": ("m2m_100", {**_BART, "scale_embedding": True}),
    "blenderbot": ("blenderbot", _BART),
    "blenderbot-small": ("blenderbot-small", _BART),
    "plbart": ("plbart", {**_BART, "scale_embedding": True}),
    "mvp": ("mvp", _BART),
    "led": ("led", {**{k: v for k, v in _BART.items() if k != "max_position_embeddings"}, "attention_window": [8, 8],
                    "max_encoder_position_embeddings": MAX_LEN, "max_decoder_position_embeddings": MAX_LEN}),
    "fsmt": ("fsmt", {**_BART, "langs": ["en", "de"], "src_vocab_size": VOCAB_SIZE, "tgt_vocab_size": VOCAB_SIZE}),
    "longt5": ("longt5", {**_T5, "local_radius": 4}),
    "switch_transformers": ("switch_transformers", {**_T5, "num_experts": 3, "expert_capacity": 512}),
    "nllb-moe": ("nllb-moe", {**_BART, "num_experts": 3, "expert_capacity": 512, "encoder_sparse_step": 2,
                              "decoder_sparse_step": 2}),
    "pegasus_x": ("pegasus_x", {**_BART, "block_size": 8, "num_global_tokens": 4}),
    "bigbird_pegasus": ("bigbird_pegasus", {**_BART, "attention_type": "original_full"}),
    "encoder-decoder": ("encoder-decoder", {}),
    "t5gemma": ("t5gemma", {}),
    "prophetnet": ("prophetnet", _PROPHETNET),
}  # fmt: skip
"""Name -> model type and the config fields that make it tiny."""

KINDS = ("t5", "bart", "marian")
"""For tests of what does not depend on the layout: relative positions, learned ones, sinusoids and a padding start."""


def start_id(family: str) -> int:
    """The token that begins every output."""
    return EOS_ID if family in COUNTS_PADDING else PAD_ID


def tiny_config(family: str) -> PreTrainedConfig:
    model_type, fields = FAMILIES[family]
    if model_type == "encoder-decoder":
        encoder, decoder = BertConfig(**_BERT), BertConfig(**_BERT, is_decoder=True, add_cross_attention=True)
        config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        for name, value in _IDS.items():
            setattr(config, name, value)
        return config
    if model_type == "t5gemma":
        return AutoConfig.for_model(model_type, encoder=_GEMMA, decoder=_GEMMA, **_IDS)
    return AutoConfig.for_model(model_type, **{**_IDS, "decoder_start_token_id": start_id(family), **fields})


def tiny_encoder_decoder(family: str, seed: int = 0) -> PreTrainedModel:
    """In float32 and eval mode; the same seed makes the same model."""
    module = AutoModelForSeq2SeqLM.from_config(tiny_config(family), dtype=torch.float32)
    scramble_pair(module, seed)
    module.generation_config = GenerationConfig(
        bos_token_id=0,
        eos_token_id=EOS_ID,
        pad_token_id=module.config.pad_token_id,
        decoder_start_token_id=start_id(family),
    )
    return module.eval()


def tiny_source_tokenizer() -> PreTrainedTokenizerFast:
    """`tiny_tokenizer` with an end token behind every text, as these models are trained to read it."""
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    copy = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer.__class__.from_str(tokenizer.backend_tokenizer.to_str()),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        clean_up_tokenization_spaces=False,
    )
    copy.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {tokenizer.eos_token}", special_tokens=[(tokenizer.eos_token, EOS_ID)]
    )
    return copy


def write_tiny_encoder_decoder(folder: Path, family: str, seed: int = 0) -> Path:
    """Write weights, config, generation_config and tokenizer."""
    tiny_encoder_decoder(family, seed).save_pretrained(folder)
    tiny_source_tokenizer().save_pretrained(folder)
    return folder


def scramble_pair(module: PreTrainedModel, seed: int) -> None:
    """Wide enough for clear margins; cross-attention strong enough that the source decides what is written."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:
                parameter.add_(0.1 * noise)
            elif "relative_attention_bias" in name:
                parameter.copy_(noise)
            elif name.endswith(".q.weight"):
                # T5's scores are not scaled, so its trained queries are small.
                parameter.copy_(2.0 / math.sqrt(48 * module.config.d_kv) * noise)
            elif "embed" in name or "shared" in name:
                parameter.copy_(0.15 * noise)
            else:
                gain = 2.0
                parameter.copy_(gain / math.sqrt(48) * noise)
            if parameter.shape[0] == VOCAB_SIZE:
                parameter[NUM_TOKENS:] = 0
