"""How many tokens a text has at least where a SentencePiece model cuts it, as `pieces.read_backend` does.

Each piece is one token. Letters and digits that have a piece of their own are never part of an unknown piece, which may
have any length, so a token holds at most as many as the longest piece.
"""

from __future__ import annotations

import json
import math

from sentencepiece import SentencePieceProcessor

from server.protocol import TokenizerFiles
from server.text.token_bounds import COUNTED, TokenBounds, counted_in

PAIRS = "".join(first + second for first in COUNTED for second in COUNTED)


class PieceBounds(TokenBounds):
    """Lower bounds for the texts of one tokenizer; 0 where nothing is known."""

    def __init__(self, files: TokenizerFiles) -> None:
        processor = SentencePieceProcessor(model_proto=files.sentencepiece)
        ids = [id_ for id_ in range(processor.get_piece_size()) if not _is_reserved(processor, id_)]
        pieces = {processor.id_to_piece(id_) for id_ in ids}
        added = [token["content"] for token in json.loads(files.tokenizer_json).get("added_tokens", [])]
        is_known = frozenset(c for c in COUNTED if c in pieces and c.lower() in pieces)
        self._set(is_known, max(map(counted_in, [*pieces, *added]), default=0))
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


def _is_reserved(processor: SentencePieceProcessor, id_: int) -> bool:
    """Whether no text has the piece."""
    return bool(
        processor.is_unknown(id_) or processor.is_control(id_) or processor.is_unused(id_) or processor.is_byte(id_)
    )
