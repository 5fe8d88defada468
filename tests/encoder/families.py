"""Tiny random models of many families. Every switch that their configs have lies far below the longest texts here."""

from __future__ import annotations

import pickle
from functools import cache
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from server.tasks import TASKS

Head = Literal["classify", "ner", "fill-mask", "question-answering"]

VOCAB_SIZE = 120
PAD_ID, CLS_ID, END_ID, MASK_ID = 0, 2, 3, 4
MAX_MODEL_LEN = 200

CLASSES: dict[Head, Any] = {
    "classify": AutoModelForSequenceClassification,
    "ner": AutoModelForTokenClassification,
    "fill-mask": AutoModelForMaskedLM,
    "question-answering": AutoModelForQuestionAnswering,
}
# Texts with positions from 0; RoBERTa's kind needs a few more rows than that.
BERT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 208,
}  # fmt: skip
DECODER = {**BERT, "num_key_value_heads": 1, "head_dim": 16}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 208, "decoder_start_token_id": END_ID,
}  # fmt: skip
DISENTANGLED = {**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16}
BLOCKS = {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1}
ONE_TYPE = {**BERT, "type_vocab_size": 1}

FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "bert": (BERT, "end to end"),
    "roberta": (ONE_TYPE, "end to end"),
    "xlm-roberta": (ONE_TYPE, "end to end"),
    "camembert": (ONE_TYPE, "end to end"),
    "distilbert": ({"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 208},
                   "end to end"),
    "albert": ({**BERT, "embedding_size": 16}, "end to end"),
    "electra": ({**BERT, "embedding_size": 16}, "end to end"),
    "ernie": (BERT, "end to end"),
    "modernbert": ({**BERT, "local_attention": 16, "global_attn_every_n_layers": 2}, "end to end"),
    "nomic_bert": (BERT, "end to end"),
    "deberta": (DISENTANGLED, "padded"),
    "deberta-v2": ({**DISENTANGLED, "position_buckets": 8, "norm_rel_ebd": "layer_norm"}, "padded"),
    "mpnet": (BERT, "padded"),
    "longformer": ({**BERT, "attention_window": 16}, "padded"),
    "roformer": (BERT, "padded"),
    "squeezebert": ({**BERT, "embedding_size": 32}, "padded"),
    "rembert": ({**BERT, "input_embedding_size": 16, "output_embedding_size": 16}, "padded"),
    "esm": ({**BERT, "position_embedding_type": "rotary", "token_dropout": True, "mask_token_id": MASK_ID}, "padded"),
    "ibert": (ONE_TYPE, "padded"),
    "bart": (BART, "padded"),
    "t5": ({"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": PAD_ID,
            "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16}, "padded"),
    # Beyond the switch, at 168 tokens, only texts of equal length share a pass.
    "big_bird": ({**BERT, **BLOCKS, "block_size": 24, "max_position_embeddings": 216}, "padded"),
    "bigbird_pegasus": ({**BART, **BLOCKS}, "equal lengths"),
    "xlnet": ({"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48}, "equal lengths"),
    "funnel": ({"block_sizes": [2, 2], "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 48,
                "num_decoder_layers": 1}, "equal lengths"),
    "fnet": ({**BERT, "use_tpu_fourier_optimizations": False}, "equal lengths"),
    "convbert": ({**BERT, "embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 5}, "equal lengths"),
    "mobilebert": ({**BERT, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
                   "equal lengths"),
    "nystromformer": ({**BERT, "segment_means_seq_len": 16, "num_landmarks": 16}, "equal lengths"),
    "yoso": (BERT, "equal lengths"),
    "reformer": ({"attention_head_size": 16, "hidden_size": 32, "num_attention_heads": 2, "feed_forward_size": 48,
                  "attn_layers": ["local", "lsh"], "local_attn_chunk_length": 16, "lsh_attn_chunk_length": 16,
                  "axial_pos_embds": False, "max_position_embeddings": 208, "is_decoder": False}, "equal lengths"),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 208}, "padded"),
    "qwen2": (DECODER, "padded"),
    "gemma3_text": ({**DECODER, "sliding_window": 16}, "padded"),
    "llama": ({**DECODER, "pad_token_id": None}, "one by one"),
}  # fmt: skip
"""Model type -> the fields that make it tiny, and how its classifier's texts may share a pass."""

EXCEPTIONS = {
    # The classifier takes no positions.
    ("nomic_bert", "classify"): "padded",
    # Only the classifier reads the last place of a row.
    ("xlnet", "ner"): "padded",
    ("xlnet", "question-answering"): "padded",
    # Only the classifier looks for padding.
    ("llama", "ner"): "padded",
    ("llama", "question-answering"): "padded",
}


def batching_of(family: str, head: Head) -> str:
    """How texts of this family and head may share a pass."""
    return EXCEPTIONS.get((family, head), FAMILIES[family][1])


def has_head(family: str, head: Head) -> bool:
    config_class = type(AutoConfig.for_model(family))
    model = CLASSES[head]._model_mapping.get(config_class, None)
    if (family, head) == ("longformer", "question-answering"):
        # It fails for a text without a question, and is refused at load.
        return False
    # A model that writes text is mapped to masks as well, for its pre-training.
    return model is not None and (head != "fill-mask" or model.__name__.endswith("ForMaskedLM"))


@cache
def family_model(family: str, head: Head) -> PreTrainedModel:
    """In float32 and eval mode. The embedding of padding is not zero, as in many trained models."""
    ids = {"pad_token_id": PAD_ID, "bos_token_id": CLS_ID, "eos_token_id": END_ID}
    fields = {"vocab_size": VOCAB_SIZE, **ids, **FAMILIES[family][0]}
    if family == "modernbert":
        fields |= {"cls_token_id": CLS_ID, "sep_token_id": END_ID}
    labels = {"num_labels": 3} if TASKS[head].has_labels else {}
    torch.manual_seed(0)
    module: PreTrainedModel = CLASSES[head].from_config(AutoConfig.for_model(family, **fields, **labels)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    return module


def fresh_model(family: str, head: Head) -> PreTrainedModel:
    """A copy that has seen no text. Unpickling takes a quarter of the time of `copy.deepcopy`."""
    module: PreTrainedModel = pickle.loads(_pickled(family, head))  # noqa: S301
    return module


@cache
def _pickled(family: str, head: Head) -> bytes:
    return pickle.dumps(family_model(family, head))
