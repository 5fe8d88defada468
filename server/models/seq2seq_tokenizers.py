"""Tokenizers that transformers has in Python alone, made into tokenizers of the tokenizers library.

Marian, M2M100 and PLBart look up SentencePiece's pieces in vocabularies of their own; `pieces.read_backend` cuts texts
into them. ByT5's tokens are bytes, and ProphetNet's are BERT's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from server.pieces import SPACE
from server.vocabulary import BYTE_ALPHABET

MARK = "\ufdd0"
"""Stands behind a special token while a text is put together. Unicode keeps it out of texts."""
TEXT = -1
"""Stands for a text's tokens among special ones."""
FINAL_SIGMA = "(?<=[\\p{Lu}\\p{Ll}\\p{Lt}])\N{GREEK CAPITAL LETTER SIGMA}(?![\\p{Lu}\\p{Ll}\\p{Lt}])"
FINAL = "\N{GREEK SMALL LETTER FINAL SIGMA}"
"""What it becomes in small letters."""
CLEAN_UP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
"""What ``clean_up_tokenization_spaces`` replaces, in transformers' order."""


class ConvertedTokenizer(PreTrainedTokenizerFast):  # type: ignore[misc]
    """Reads and writes texts as the folder's slow tokenizer does."""

    sentencepiece: bytes = b""
    """The model that cuts texts, for `pieces.read_backend`."""
    reads_language_tags: bool = False
    strips_text: bool = False
    target: ConvertedTokenizer | None = None
    """For texts that the model writes, where they have another model or vocabulary."""


def convert(slow: Any) -> ConvertedTokenizer | None:
    """Of a tokenizer that transformers has loaded; None for a kind that is not known here."""
    make = CONVERTERS.get(type(slow).__name__)
    return None if make is None else make(slow)


def _marian(slow: Any) -> ConvertedTokenizer:
    source, target = (Path(path).read_bytes() for path in slow.spm_files)
    converted = _of_pieces(slow, slow.encoder, source, between=" ")
    if slow.separate_vocabs or target != source:
        vocabulary = slow.target_encoder if slow.separate_vocabs else slow.encoder
        converted.target = _of_pieces(slow, vocabulary, target, between=" ")
    for tokenizer in filter(None, (converted, converted.target)):
        tokenizer.reads_language_tags = True
    return converted


def _m2m100(slow: Any) -> ConvertedTokenizer:
    vocabulary = {**slow.encoder, **slow.lang_token_to_id}
    return _of_pieces(slow, vocabulary, Path(slow.spm_file).read_bytes(), between="")


def _plbart(slow: Any) -> ConvertedTokenizer:
    return _of_pieces(slow, slow.get_vocab(), Path(slow.vocab_file).read_bytes(), between=None)


def _of_pieces(slow: Any, vocabulary: Mapping[str, int], model: bytes, between: str | None) -> ConvertedTokenizer:
    """``between`` stands behind a special token, in place of the space before the next piece; None keeps the space."""
    known = {**_added_ids(slow), **vocabulary}
    backend = tokenizers.Tokenizer(models.WordLevel(known, unk_token=str(slow.unk_token)))
    processor = SentencePieceProcessor(model_proto=model)
    has_bytes = any(map(processor.is_byte, range(processor.get_piece_size())))
    steps = [decoders.Replace(SPACE, " "), *([decoders.ByteFallback()] if has_bytes else []), decoders.Fuse()]
    if between is not None:
        special = "|".join(rf"\A{re.escape(token)}" for token in slow.all_special_tokens)
        # Each token is looked at alone before they are joined, so a text that spells a special token stays.
        steps.insert(0, decoders.Replace(Regex(rf"(?<={special})\z"), MARK))
        spaces = " *" if processor.decode([SPACE, SPACE, "x"]) == "x" else " ?"
        steps += [decoders.Replace(Regex(rf"{MARK}{spaces}\z"), ""), decoders.Replace(Regex(MARK + spaces), between)]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0), *_clean_up(slow)])
    converted = _finished(slow, backend)
    converted.sentencepiece = model
    converted.strips_text = True
    return converted


def _byt5(slow: Any) -> ConvertedTokenizer:
    alphabet = {chr(character): byte + slow.offset for character, byte in BYTE_ALPHABET.items()}
    backend = tokenizers.Tokenizer(models.BPE(vocab={**_added_ids(slow), **alphabet}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _finished(slow, backend)


def _prophetnet(slow: Any) -> ConvertedTokenizer | None:
    if not slow.do_basic_tokenize or slow.basic_tokenizer.never_split:
        return None
    words, pieces = slow.basic_tokenizer, slow.wordpiece_tokenizer
    backend = tokenizers.Tokenizer(
        models.WordPiece(
            slow.vocab, unk_token=str(slow.unk_token), max_input_chars_per_word=pieces.max_input_chars_per_word
        )
    )
    lowers, strips = words.do_lower_case, words.strip_accents
    bare = lowers if strips is None else strips
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"[\p{Cn}\p{Co}]"), ""),
            *([normalizers.Replace(Regex(FINAL_SIGMA), FINAL)] if lowers else []),
            normalizers.BertNormalizer(
                handle_chinese_chars=words.tokenize_chinese_chars, strip_accents=False, lowercase=lowers
            ),
            *([normalizers.NFD(), normalizers.Replace(Regex(r"\p{Mn}"), "")] if bare else [normalizers.NFC()]),
        ]
    )
    # The library's own steps know the characters of an older Unicode.
    punctuation = pre_tokenizers.Split(Regex(r"\p{P}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), punctuation])
    backend.decoder = decoders.Sequence([decoders.WordPiece("##", cleanup=False), decoders.Fuse(), *_clean_up(slow)])
    return _finished(slow, backend)


CONVERTERS: dict[str, Callable[[Any], ConvertedTokenizer | None]] = {
    "MarianTokenizer": _marian,
    "M2M100Tokenizer": _m2m100,
    "PLBartTokenizer": _plbart,
    "ByT5Tokenizer": _byt5,
    "ProphetNetTokenizer": _prophetnet,
}
"""Name of transformers' class -> what reads its files."""


def _clean_up(slow: Any) -> list[decoders.Decoder]:
    if not slow.clean_up_tokenization_spaces:
        return []
    return [decoders.Replace(written, kept) for written, kept in CLEAN_UP]


def _finished(slow: Any, backend: tokenizers.Tokenizer) -> ConvertedTokenizer:
    """With the special tokens of the slow one, in texts and around them."""
    for token in _added(slow).values():
        added = AddedToken(
            token.content,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            single_word=token.single_word,
            # Only then are they all found in one pass, as transformers does.
            normalized=False,
            special=token.content in slow.all_special_tokens,
        )
        (backend.add_special_tokens if added.special else backend.add_tokens)([added])
    backend.post_processor = _around(slow)
    names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    return ConvertedTokenizer(
        tokenizer_object=backend,
        model_max_length=slow.model_max_length,
        truncation_side=slow.truncation_side,
        padding_side=slow.padding_side,
        model_input_names=slow.model_input_names,
        chat_template=slow.chat_template,
        **{name: str(getattr(slow, name)) for name in names if getattr(slow, name, None) is not None},
    )


def _added(slow: Any) -> dict[int, AddedToken]:
    """Tokens that are found in a text before it is cut, by their ids."""
    special = {slow.convert_tokens_to_ids(token): AddedToken(token) for token in slow.all_special_tokens}
    return {**special, **slow.added_tokens_decoder}


def _added_ids(slow: Any) -> dict[str, int]:
    return {token.content: number for number, token in _added(slow).items()}


def _around(slow: Any) -> processors.PostProcessor:
    single = slow.build_inputs_with_special_tokens([TEXT])
    pair = slow.build_inputs_with_special_tokens([TEXT], [TEXT])
    special = {number: slow.convert_ids_to_tokens(number) for number in {*single, *pair} - {TEXT}}
    second = len(pair) - 1 - pair[::-1].index(TEXT)
    return processors.TemplateProcessing(
        single=[special.get(number, "$A") for number in single],
        pair=[special.get(number, "$B" if place == second else "$A") for place, number in enumerate(pair)],
        special_tokens=[(token, number) for number, token in special.items()],
    )
