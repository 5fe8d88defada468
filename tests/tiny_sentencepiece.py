"""SentencePiece models trained on a few lines, and folders of the tokenizers that are made of them."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece

from tests.tiny_tokenizers import CORPUS

LINES = [line.strip() for line in CORPUS.splitlines() if line.strip()] + [
    "Das Wetter ist schön, wir gehen im Park spazieren. Die Straße führt über den Fluss.",
    "O rio passa pelo moinho, e o moleiro conta os sacos de farinha. Não é possível!",
    "Старая мельница стоит у реки. Каждое утро телеги спускаются с холма.",
    "天気がいいので、公園を散歩しましょう。カタカナとひらがな、ｶﾀｶﾅ。",
    "הנהר זורם ליד הטחנה הישנה. नदी पुरानी चक्की के पास से बहती है। แม่น้ำไหลผ่านโรงสีเก่า",
]


@cache
def train(model_type: str, vocab_size: int = 600, **options: Any) -> bytes:
    """A serialised model of ``unigram`` or ``bpe``."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        model_type=model_type,
        vocab_size=vocab_size,
        character_coverage=0.98,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def pieces(model: bytes) -> list[str]:
    """In the order of their ids."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(number) for number in range(processor.get_piece_size())]


def _most(tokens: list[str]) -> list[str]:
    """Without a few ordinary ones."""
    return [token for number, token in enumerate(tokens) if number % 17 or token.startswith((">>", "<0x"))]


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_m2m100(folder: Path, model: bytes, **settings: Any) -> Path:
    """A vocabulary in fairseq's order, which leaves out a few pieces of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    known = _most(pieces(model)[3:])
    write_json(folder / "vocab.json", {token: n for n, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *known])})
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "M2M100Tokenizer", **settings})
    write_json(folder / "config.json", {"model_type": "m2m_100"})
    return folder


def write_marian(folder: Path, source: bytes, target: bytes, tags: list[str], **settings: Any) -> Path:
    """A vocabulary for both models, or one for each with ``separate_vocabs``, without some of their pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "source.spm").write_bytes(source)
    (folder / "target.spm").write_bytes(target)
    if settings.get("separate_vocabs"):
        write_json(folder / "target_vocab.json", _marian_vocabulary(pieces(target)[3:]))
        vocabulary = _marian_vocabulary(pieces(source)[3:])
    else:
        vocabulary = _marian_vocabulary([*pieces(source)[3:], *pieces(target)[3:], *tags])
    write_json(folder / "vocab.json", vocabulary)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "MarianTokenizer", **settings})
    write_json(folder / "config.json", {"model_type": "marian", "pad_token_id": vocabulary["<pad>"]})
    return folder


def _marian_vocabulary(tokens: list[str]) -> dict[str, int]:
    known = _most(list(dict.fromkeys(tokens)))
    return {token: number for number, token in enumerate(["</s>", "<unk>", "<pad>", *known])}


def write_plbart(folder: Path, model: bytes, **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PLBartTokenizer", **settings})
    write_json(folder / "config.json", {"model_type": "plbart"})
    return folder


def write_prophetnet(folder: Path, **settings: Any) -> Path:
    """A vocabulary of letters, a few syllables and words."""
    folder.mkdir(parents=True, exist_ok=True)
    words = sorted({word.lower() for line in LINES for word in line.replace(".", " ").split()})
    letters = sorted({letter for word in words for letter in word} | set(".,?!'\""))
    parts = sorted({word[:length] for word in words for length in (2, 3)})
    tokens = ["[PAD]", "[X_SEP]", "[SEP]", "[UNK]", "[MASK]", *letters, *parts, *words]
    tokens += [f"##{token}" for token in (*letters, *parts)]
    (folder / "prophetnet.tokenizer").write_text("\n".join(dict.fromkeys(tokens)) + "\n", encoding="utf-8")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "ProphetNetTokenizer", **settings})
    write_json(folder / "config.json", {"model_type": "prophetnet"})
    return folder
