"""The beginning of a long text that is to be cut: quicker to read than the whole, with the same first tokens."""

from __future__ import annotations

import json

from sentencepiece import SentencePieceProcessor

from server.pieces import end_of_tag
from server.protocol import TokenizerFiles

NUM_TRIES = 16
"""Places that are tried. Few do not serve: one inside a character of which a normaliser makes several, say."""


class PieceBeginnings:
    """Of texts that a SentencePiece model cuts, as `pieces.read_backend` does.

    The model cuts a megabyte in a fraction of a second; a tokenizer's other work on each piece takes ten times as long.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        self._processor = SentencePieceProcessor(model_proto=files.sentencepiece)
        self._reads_language_tags = files.reads_language_tags
        self._added = [token["content"] for token in json.loads(files.tokenizer_json).get("added_tokens", [])]

    def beginning(self, text: str, num_tokens: int) -> str:
        """A part of the text with the same first ``num_tokens`` tokens, and no fewer; the whole if there is none."""
        if any(token in text for token in self._added):
            # The parts between such tokens are cut one by one.
            return text
        start = end_of_tag(text) if self._reads_language_tags else 0
        pieces, places = self._cut(text[start:])
        for number in range(num_tokens, min(num_tokens + NUM_TRIES, len(pieces))):
            end = start + places[number][0]
            if self._cut(text[start:end])[0] == pieces[:number]:
                return text[:end]
        return text

    def _cut(self, text: str) -> tuple[list[str], list[tuple[int, int]]]:
        cut = self._processor.encode(text, return_type="offset_mapping")
        return cut["pieces"], cut["offsets"]
