"""Tiny random encoder-decoder bases of many families, with the tokenizers that their folders come with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    ByT5Tokenizer,
    GenerationConfig,
    MBartTokenizer,
    NllbTokenizer,
)

from server.models.tokenizer_files import load_tokenizer
from tests.tiny_encoder_decoders import FAMILIES, scramble_pair, write_tiny_encoder_decoder
from tests.tiny_sentencepiece import train, write_m2m100, write_marian

LETTERS = ["▁", *"abcdefghijklmnopqrstuvwxyz0123456789"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
WORDS = ["river", "mill", "baker", "flour", "cart", "hill", "boat", "bread", "wheel", "stone", "oven", "field"]


def write_pairs(path: Path, count: int = 40) -> Path:
    """Two words and their reverse order."""
    rows = []
    for number in range(count):
        first, second = WORDS[number % 12], WORDS[(number * 5 + number // 12 + 1) % 12]
        rows.append({"source": f"the {first} and {second}", "target": f"{second} and the {first}"})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def _write_model(folder: Path, family: str, **ids: int) -> Path:
    """Weights for the tokenizer that ``folder`` has. Sizes are those of the tiny model of ``family``."""
    model_type, sizes = FAMILIES[family]
    config = AutoConfig.for_model(model_type, **{**sizes, **ids, "forced_eos_token_id": None})
    module = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    scramble_pair(module, seed=0)
    names = ("eos_token_id", "pad_token_id", "decoder_start_token_id")
    module.generation_config = GenerationConfig(**{name: ids[name] for name in names})
    module.save_pretrained(folder)
    return folder


def _fairseq_ids(tokenizer_size: int) -> dict[str, int]:
    return {"vocab_size": tokenizer_size, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}


def write_mbart(folder: Path) -> Path:
    scored = [(piece, -1.0 if piece in LETTERS else 0.0) for piece in [*SPECIAL, *LETTERS]]
    tokenizer = MBartTokenizer(vocab=scored)
    tokenizer.save_pretrained(folder)
    return _write_model(folder, "mbart", decoder_start_token_id=2, **_fairseq_ids(len(tokenizer)))


def write_nllb(folder: Path) -> Path:
    tokenizer = NllbTokenizer(vocab={piece: number for number, piece in enumerate([*SPECIAL, *LETTERS])})
    tokenizer.save_pretrained(folder)
    return _write_model(folder, "m2m_100", decoder_start_token_id=2, **_fairseq_ids(len(tokenizer)))


def write_m2m(folder: Path) -> Path:
    write_m2m100(folder, train("bpe"), additional_special_tokens=["__en__", "__de__", "__fr__"])
    return _write_model(folder, "m2m_100", decoder_start_token_id=2, **_fairseq_ids(len(load_tokenizer(folder))))


def write_opus(folder: Path) -> Path:
    model = train("unigram")
    write_marian(folder, model, model, [], source_lang="en", target_lang="de")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    pad = vocabulary["<pad>"]
    return _write_model(folder, "marian", vocab_size=len(vocabulary), bos_token_id=0, eos_token_id=vocabulary["</s>"],
                        pad_token_id=pad, decoder_start_token_id=pad)  # fmt: skip


def write_byt5(folder: Path) -> Path:
    tokenizer = ByT5Tokenizer(extra_ids=20)
    tokenizer.save_pretrained(folder)
    return _write_model(folder, "t5-1.1", vocab_size=len(tokenizer), eos_token_id=1, pad_token_id=0,
                        decoder_start_token_id=0)  # fmt: skip


def _plain(family: str) -> Callable[[Path], Path]:
    return lambda folder: write_tiny_encoder_decoder(folder, family)


BASES: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "t5": (_plain("t5"), {"method": "lora", "prefix": "swap: "}),
    "bart": (_plain("bart"), {"method": "full", "route": "summarize", "prefix": "short: "}),
    "pegasus": (_plain("pegasus"), {"method": "full", "src_lang": "en", "tgt_lang": "de"}),
    "mbart": (write_mbart, {"method": "lora", "src_lang": "en_XX", "tgt_lang": "de_DE"}),
    "marian": (write_opus, {"method": "full", "num_beams": 3}),
    "m2m100": (write_m2m, {"method": "lora", "merge": True, "src_lang": "en", "tgt_lang": "de"}),
    "nllb": (write_nllb, {"method": "full", "src_lang": "eng", "tgt_lang": "deu_Latn"}),
    "byt5": (write_byt5, {"method": "lora", "merge": True, "num_beams": 2}),
}
"""Name -> what writes the base, and options that differ from one base to the next."""
