"""How many tokens a text has at least where a SentencePiece model cuts it, as `pieces.read_backend` does.

Each piece is one token. Letters and digits that have a piece of their own are never part of an unknown piece, which may
have any length, so a token holds at most as many as the longest piece.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata

from sentencepiece import SentencePieceProcessor

from server.pieces import SPACE
from server.protocol import TokenizerFiles
from server.text.token_bounds import COUNTED, TokenBounds

PAIRS = "".join(first + second for first in COUNTED for second in COUNTED)


class PieceBounds(TokenBounds):
    """Lower bounds for the texts of one tokenizer; 0 where nothing is known."""

    def __init__(self, files: TokenizerFiles) -> None:
        processor = SentencePieceProcessor(model_proto=files.sentencepiece)
        ids = [id_ for id_ in range(processor.get_piece_size()) if not _is_reserved(processor, id_)]
        pieces = {processor.id_to_piece(id_) for id_ in ids}
        added = [token["content"] for token in json.loads(files.tokenizer_json).get("added_tokens", [])]
        is_known = frozenset(c for c in COUNTED if c in pieces and c.lower() in pieces)
        letters = is_known | _stable_letters(processor, pieces)
        self._not_counted = re.compile(f"[^{re.escape(''.join(sorted(letters)))}]+") if letters else None
        self._set(is_known, max(map(_most_counted, [*pieces, *added]), default=0))
        self._reads_language_tags = files.reads_language_tags
        self._before_tags = {token[-1] for token in added if token} | set(" \t\n\r")
        """Characters that a part of the text, which may have a tag of its own, may come after."""
        self._has_added = bool(added)
        cut = processor.encode(PAIRS, out_type=str)
        # A normaliser may join letters, and a model of words cuts none.
        is_kept = "".join(c for piece in cut for c in piece if c in COUNTED).lower() == PAIRS.lower()
        if not is_kept or self.at_least(PAIRS) > len(cut):
            self._kinds = None

    def at_least(self, text: str, enough: float = math.inf) -> int:
        return super().at_least(self._without_tags(text) if self._reads_language_tags else text, enough)

    def _counts(self, kinds_of_bytes: bytes, part: str) -> tuple[int, int, int]:
        if part.isascii() or self._not_counted is None:
            return super()._counts(kinds_of_bytes, part)
        ascii_ = part.encode("ascii", "ignore").translate(kinds_of_bytes)
        num_letters = len(self._not_counted.sub("", part))
        num_others = len(part) - len(ascii_) - (num_letters - ascii_.count(b"a"))
        return 0, num_letters, num_others

    def _without_tags(self, text: str) -> str:
        """A tag such as ``>>fra<<`` is one token, however long it is."""
        parts, start, begin = [], 0, text.find(">>")
        while begin >= 0:
            if begin and not (self._has_added and self._may_follow(text[begin - 1])):
                begin = text.find(">>", begin + 1)
                continue
            end = text.find("<<", begin + 2)
            if end < 0:
                break
            parts.append(text[start:begin])
            start = end + 2
            begin = text.find(">>", start)
        return " ".join([*parts, text[start:]])

    def _may_follow(self, before: str) -> bool:
        return before in self._before_tags or before.isspace()


def _most_counted(token: str) -> int:
    return sum(character in COUNTED or not character.isascii() for character in token)


def _stable_letters(processor: SentencePieceProcessor, pieces: set[str]) -> frozenset[str]:
    """Letters outside ASCII with a piece of their own that the normaliser keeps, whatever letter stands beside them."""
    known = [c for c in pieces if len(c) == 1 and _is_letter(c) and processor.normalize(c).strip(SPACE + " ") == c]
    known.sort()
    for neighbours in (known, known[::-1], known[::2] + known[1::2]):
        text = "".join(neighbours)
        if "".join(processor.encode(text, out_type=str)).strip(SPACE) != text:
            return frozenset()
    return frozenset(known)


def _is_letter(character: str) -> bool:
    """Whether it is a letter outside ASCII that Unicode joins to no letter before it, as it does parts of Hangul."""
    is_jamo = "\u1100" <= character <= "\u11ff"
    return not character.isascii() and not is_jamo and unicodedata.category(character)[0] == "L"


def _is_reserved(processor: SentencePieceProcessor, id_: int) -> bool:
    """Whether no text has the piece."""
    return bool(
        processor.is_unknown(id_) or processor.is_control(id_) or processor.is_unused(id_) or processor.is_byte(id_)
    )
