"""A tokenizer of every kind, trained on a paragraph: each way in which tokens become text."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from server.protocol import TokenizerFiles
from tests.fixed_vocabulary import train_unigram, train_word_piece

CORPUS = """
The river runs past the mill, and the miller counts the sacks of flour. Don't they're "quoted"? Yes! It's 12.50.
Every morning the carts come down the hill; every evening they go back up again. Unbelievable running runner.
今天天气很好，我们去公园散步。河边的磨坊已经很旧了。你好，世界！
مرحبا بالعالم، النهر يجري بجانب الطاحونة القديمة.
😀🚀 Über den Flüssen — naïve cafés 👨‍👩‍👧 ❤️ 🇩🇪
"""
BOS, EOS, UNK = "<s>", "</s>", "<unk>"
SPECIAL = [BOS, EOS, UNK]
NUM_TOKENS = 400


def _byte_level() -> Tokenizer:
    """As GPT-2, Llama 3, Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TOKENS, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("你好吗", normalized=False)])
    return tokenizer


def _byte_level_in_a_sequence() -> Tokenizer:
    tokenizer = _byte_level()
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("~", "-")])
    return tokenizer


def _byte_fallback(strip: bool) -> Tokenizer:
    """As Llama 2 (which strips the first space) and Gemma (which does not): SentencePiece BPE with byte tokens."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=UNK, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")] if strip else [normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁[^▁]*"), "isolated")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TOKENS, special_tokens=SPECIAL + bytes_, limit_alphabet=90, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    # A trainer can reserve tokens only as special ones; byte tokens are ordinary: decoding does not skip them.
    tree = json.loads(tokenizer.to_str())
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] in SPECIAL]
    return Tokenizer.from_str(json.dumps(tree))


def _metaspace() -> Tokenizer:
    """As XLNet or T5: SentencePiece Unigram without byte tokens."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    train_unigram(tokenizer, CORPUS.splitlines(), vocab_size=NUM_TOKENS, special_tokens=SPECIAL, unk_token=UNK)
    return tokenizer


def _word_piece() -> Tokenizer:
    """As BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    train_word_piece(tokenizer, CORPUS.splitlines(), vocab_size=NUM_TOKENS, special_tokens=SPECIAL)
    return tokenizer


def _word_end() -> Tokenizer:
    """As the first GPT: the last piece of a word is marked, so a space is known only when the next word begins."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TOKENS, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    return tokenizer


def _no_decoder() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    return tokenizer


_MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": _byte_level,
    "byte_level_in_a_sequence": _byte_level_in_a_sequence,
    "byte_fallback_strip": lambda: _byte_fallback(strip=True),
    "byte_fallback": lambda: _byte_fallback(strip=False),
    "metaspace": _metaspace,
    "word_piece": _word_piece,
    "word_end": _word_end,
    "no_decoder": _no_decoder,
}
KINDS = list(_MAKERS)


@cache
def tokenizer_files(kind: str) -> TokenizerFiles:
    return TokenizerFiles(tokenizer_json=_MAKERS[kind]().to_str(), bos_token=BOS, eos_token=EOS, unk_token=UNK)
