"""Texts cut by a SentencePiece model whose pieces another vocabulary numbers, as those of Marian and M2M100 are.

transformers has these tokenizers in Python alone. Here the pieces are what a tokenizer of the tokenizers library looks
up: special tokens, ids, offsets and decoding are that library's.
"""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from sentencepiece import SentencePieceProcessor
from tokenizers import NormalizedString, PreTokenizedString, Regex
from tokenizers.pre_tokenizers import PreTokenizer

from server.protocol import TokenizerFiles

FEW = 8
ALL = Regex(r"(?m:\A.*\z)")
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""As SentencePiece writes a space."""


def read_backend(files: TokenizerFiles) -> tokenizers.Tokenizer:
    """The tokenizer, ready to read texts."""
    backend = tokenizers.Tokenizer.from_str(files.tokenizer_json)
    if files.sentencepiece:
        backend.pre_tokenizer = PreTokenizer.custom(_Pieces(files.sentencepiece, files.reads_language_tags))
    return backend


class _Pieces:
    """A pre-tokenizer of the tokenizers library. Its threads may share it."""

    def __init__(self, model: bytes, reads_language_tags: bool) -> None:
        self._processor = SentencePieceProcessor(model_proto=model)
        self._reads_language_tags = reads_language_tags

    def pre_tokenize(self, text: PreTokenizedString) -> None:
        text.split(self._split)

    def _split(self, _number: int, text: NormalizedString) -> list[NormalizedString]:
        written = text.normalized
        start = end_of_tag(written) if self._reads_language_tags else 0
        cut = self._processor.encode(written[start:], return_type="offset_mapping")
        places = [(begin + start, end + start) for begin, end in cut["offsets"]]
        if start:
            return _parts(text, [written[:start], *cut["pieces"]], [(0, start), *places])
        return _parts(text, cut["pieces"], places)


def _parts(
    text: NormalizedString, pieces: Sequence[str], places: Sequence[tuple[int, int]], start: int = 0
) -> list[NormalizedString]:
    """A part of the text for each piece. ``places`` count characters from ``start`` before the text.

    A slice takes as long as the text that it is cut from, so a long text is halved first.
    """
    if len(pieces) <= FEW:
        return [_part(text, place, start, piece) for piece, place in zip(pieces, places, strict=True)]
    half = len(pieces) // 2
    border = places[half][0]
    return [
        *_parts(_slice(text, 0, border - start), pieces[:half], places[:half], start),
        *_parts(_slice(text, border - start, None), pieces[half:], places[half:], border),
    ]


def _part(text: NormalizedString, place: tuple[int, int], start: int, piece: str) -> NormalizedString:
    part = _slice(text, place[0] - start, place[1] - start)
    _rewrite(part, piece)
    return part


def _slice(text: NormalizedString, begin: int, end: int | None) -> NormalizedString:
    # Where no characters are left there is no slice.
    return text[begin:end] or NormalizedString("")


def end_of_tag(text: str) -> int:
    """Behind a tag such as ``>>fra<<`` at the very start; 0 without one."""
    return text.find("<<") + 2 if text.startswith(">>") and "<<" in text else 0


def _rewrite(part: NormalizedString, piece: str) -> None:
    """Make ``piece`` of the text's own characters, and keep the offsets of as many as possible."""
    surface = part.normalized
    if piece == surface:
        return
    if surface and piece == SPACE + surface[1:] and surface[0] == " ":
        part.replace(" ", SPACE)
    elif piece == SPACE + surface.lstrip(" "):
        part.replace(" ", "")
        part.prepend(SPACE) if part.normalized else part.append(SPACE)
    elif len(piece) == len(surface):
        characters = iter(piece)
        part.map(lambda _: next(characters))
    elif surface:
        part.replace(ALL, piece)
    else:
        part.append(piece)
