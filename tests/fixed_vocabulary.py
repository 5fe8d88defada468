"""Trains tokenizers whose vocabulary is the same in every process: the library's trainers break ties at random."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import Tokenizer, models, trainers

PREFIX = "##"


def train_word_piece(
    tokenizer: Tokenizer, texts: Sequence[str], *, vocab_size: int, special_tokens: Sequence[str]
) -> None:
    """Give the tokenizer a WordPiece model of ``texts``; the special tokens have the first ids."""
    normalized = [tokenizer.normalizer.normalize_str(text) for text in texts]
    words = [word for text in normalized for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    # The trainer numbers the second kind in the order of a hash table, and the numbers break ties between merges.
    characters = sorted({character for word in words for character in word})
    inner = sorted({PREFIX + character for word in words for character in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*special_tokens, *characters, *inner], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The trainer also registers them as special tokens, which a text then keeps whole: only the model needs them.
    tree = json.loads(tokenizer.to_str())
    _replace(tokenizer, models.WordPiece(tree["model"]["vocab"], unk_token=tree["model"]["unk_token"]), special_tokens)


def train_unigram(
    tokenizer: Tokenizer, texts: Sequence[str], *, vocab_size: int, special_tokens: Sequence[str], unk_token: str
) -> None:
    """Give the tokenizer a Unigram model of ``texts``; the special tokens have the first ids."""
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=list(special_tokens), unk_token=unk_token, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    pieces = dict(json.loads(tokenizer.to_str())["model"]["vocab"])
    # Rare pieces get scores a ten-thousandth apart, in the order of a hash table.
    scores = {piece: round(pieces[piece], 2) for piece in sorted(pieces) if piece not in special_tokens}
    vocabulary = [*((token, 0.0) for token in special_tokens), *sorted(scores.items(), key=lambda item: -item[1])]
    _replace(tokenizer, models.Unigram(vocabulary, unk_id=special_tokens.index(unk_token)), special_tokens)


def _replace(tokenizer: Tokenizer, model: models.Model, special_tokens: Sequence[str]) -> None:
    """A new model, and no other added tokens than the special ones."""
    tree = json.loads(tokenizer.to_str())
    fresh = Tokenizer(model)
    fresh.add_special_tokens(list(special_tokens))
    tree["model"], tree["added_tokens"] = (json.loads(fresh.to_str())[name] for name in ("model", "added_tokens"))
    tokenizer.__setstate__(json.dumps(tree).encode())
