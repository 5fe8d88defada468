"""Tiny random encoder bases with a word tokenizer, and data that they learn in a second."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

GOOD, BAD = ["good", "great", "lovely", "fine", "superb"], ["bad", "awful", "dreadful", "poor", "grim"]
NAMES, CITIES = ["Anna", "Ben", "Clara", "David", "Emma"], ["Bern", "Oslo", "Rome", "Lima", "Kyoto"]
PLAIN = ["the", "film", "was", "lives", "in", "near", "and", "saw", "a", "story", "quite", "today", "with", "from"]
WORDS = [*GOOD, *BAD, *NAMES, *CITIES, *PLAIN]
SIZES = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48},
    "roberta": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
}


def write_base(folder: Path, model_type: str = "bert") -> Path:
    """A body without a head, as a masked language model's folder would give."""
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
        pad_token_id=0,
        initializer_range=0.1,
        **SIZES[model_type],
    )
    transformers.AutoModel.from_config(config).save_pretrained(folder)
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
