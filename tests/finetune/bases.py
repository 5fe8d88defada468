"""Tiny random encoder bases with a word tokenizer, and data that they learn in a second."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

GOOD, BAD = ["good", "great", "lovely", "fine", "superb"], ["bad", "awful", "dreadful", "poor", "grim"]
NAMES, CITIES = ["Anna", "Ben", "Clara", "David", "Emma"], ["Bern", "Oslo", "Rome", "Lima", "Kyoto"]
PLAIN = ["the", "film", "was", "lives", "in", "near", "and", "saw", "a", "story", "quite", "today", "with", "from"]
WORDS = [*GOOD, *BAD, *NAMES, *CITIES, *PLAIN]
_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SIZES: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": {**_BERT, "embedding_size": 16},
    "albert": {**_BERT, "embedding_size": 16},
    "deberta-v2": {**_BERT, "relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": {**_BERT, "local_attention": 16, "cls_token_id": 2, "sep_token_id": 3},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    "llama": {**_BERT, "num_key_value_heads": 1},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
}
DECODERS = ("llama", "gpt2")


def write_base(folder: Path, model_type: str = "bert", *, for_words: bool = False) -> Path:
    """A body without a head; ``for_words`` with that of a language model, and so without a pooler."""
    # Written down, not trained: a trainer breaks ties differently each time, and runs would not repeat.
    letters = sorted({letter for word in WORDS for letter in word})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(
        model_type,
        vocab_size=len(vocab),
        max_position_embeddings=66,
        initializer_range=0.1,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=None if model_type in DECODERS else 0,
        **SIZES[model_type],
    )
    kind = transformers.AutoModel
    if for_words:
        kind = transformers.AutoModelForCausalLM if model_type in DECODERS else transformers.AutoModelForMaskedLM
    kind.from_config(config).save_pretrained(folder)
    return folder


def write_reviews(path: Path, num_rows: int = 240) -> Path:
    """CSV: the label is the kind of the one word that judges."""
    rng = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for index in range(num_rows):
            label, judging = [("positive", GOOD), ("negative", BAD)][index % 2]
            words = [*rng.choices(PLAIN, k=2), rng.choice(judging)]
            rng.shuffle(words)
            writer.writerow([" ".join(words), label])
    return path


def write_sentences(path: Path, num_sentences: int = 160) -> Path:
    """CoNLL with a third column between: persons and places."""
    rng = random.Random(0)
    blocks = ["-DOCSTART- -X- O\n"]
    for _ in range(num_sentences):
        person = [(rng.choice(NAMES), "B-PER"), *([(rng.choice(NAMES), "I-PER")] if rng.random() < 0.5 else [])]
        plain = [(word, "O") for word in rng.choices(PLAIN, k=3)]
        rows = [*person, *plain, (rng.choice(CITIES), "B-LOC")]
        blocks.append("".join(f"{word} -X- {tag}\n" for word, tag in rows))
    path.write_text("\n".join(blocks), encoding="utf-8")
    return path


def write_pairs(path: Path, num_rows: int = 240) -> Path:
    """CSV with text_pair: the label says whether both texts judge alike."""
    rng = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["text", "text_pair", "label"])
        for index in range(num_rows):
            first, second = rng.sample([GOOD, BAD], 2) if index % 2 else [rng.choice([GOOD, BAD])] * 2
            texts = [f"{rng.choice(PLAIN)} {rng.choice(words)}" for words in (first, second)]
            writer.writerow([*texts, "differ" if index % 2 else "agree"])
    return path


def squad(paragraphs: list[tuple[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """As a file of SQuAD has them."""
    return {"version": "2.0", "data": [
        {"title": "x", "paragraphs": [{"context": context, "qas": asked} for context, asked in paragraphs]}
    ]}  # fmt: skip


def write_questions(path: Path, num_texts: int = 160) -> Path:
    """Nested as SQuAD's: where a person lives; one text in four names no city, and some are longer than the base."""
    rng = random.Random(0)
    paragraphs = []
    for index in range(num_texts):
        name, city = rng.choice(NAMES), rng.choice(CITIES) if index % 4 else None
        before = [rng.choice(PLAIN) for _ in range(rng.choice([2, 4, 80]) if index % 8 == 1 else 3)]
        words = [*before, name, "lives", "in", *([city] if city else []), *rng.choices(PLAIN, k=3)]
        context = " ".join(words)
        answers = [{"text": city, "answer_start": context.index(city)}] if city else []
        asked = {"id": str(index), "question": f"{name} lives in", "answers": answers, "is_impossible": not answers}
        paragraphs.append((context, [asked]))
    path.write_text(json.dumps(squad(paragraphs)), encoding="utf-8")
    return path


HAN = "\u5f20\u674e\u4e09\u56db\u5728\u5317\u4eac\u4e0a\u6d77\u5e02\u5de5\u4f5c\u5927\u5b66\u533a\u3002"
"""Letters of names, cities and what stands between them, in this order: 4, 1, 5, 6."""


def write_chinese(path: Path, num_sentences: int = 160) -> Path:
    """CoNLL with a character a word, and numbers and Latin letters between."""
    rng = random.Random(0)
    blocks = []
    for _ in range(num_sentences):
        name = rng.choice(HAN[:2]) + rng.choice(HAN[2:4])
        city = rng.choice([HAN[5:7], HAN[7:9], HAN[7:10]])
        tagged = [
            *zip(name, ["B-PER", "E-PER"], strict=True), (HAN[4], "O"),
            *zip(city, ["B-LOC", *["M-LOC"] * (len(city) - 2), "E-LOC"], strict=True),
            *((letter, "O") for letter in rng.choice(["GE", "7", "", "12"])),
            (rng.choice(HAN[10:]), "O"),
        ]  # fmt: skip
        blocks.append("".join(f"{letter}\t{tag}\n" for letter, tag in tagged))
    path.write_text("\n".join(blocks), encoding="utf-8")
    return path


def write_chinese_base(folder: Path) -> Path:
    """XLM-R's kind: its pieces hold several characters, and those of spaced text are others."""
    letters = [*HAN, *"GE712"]
    cities = [HAN[5:7], HAN[7:9]]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *letters, *(f"\u2581{letter}" for letter in letters), *cities]
    vocab = [(piece, -2.0 - len(piece) / 10) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", **names
    ).save_pretrained(folder)
    torch.manual_seed(1)
    config = transformers.XLMRobertaConfig(
        vocab_size=len(vocab), max_position_embeddings=66, initializer_range=0.1, **SIZES["xlm-roberta"]
    )
    transformers.XLMRobertaForMaskedLM(config).save_pretrained(folder)
    return folder
