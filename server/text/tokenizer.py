"""Text to token ids and back, by the model's own fast tokenizer; knows nothing of requests or models."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers

from server.protocol import TokenizerFiles


class Tokenizer:
    """One model's tokenizer. Encoding a long text takes milliseconds: call it in a thread, never on the event loop."""

    def __init__(self, files: TokenizerFiles) -> None:
        self.files = files
        self.backend = tokenizers.Tokenizer.from_str(files.tokenizer_json)
        self.backend.no_padding()
        self.backend.no_truncation()
        added = self.backend.get_added_tokens_decoder()
        self.special_ids: frozenset[int] = frozenset(id_ for id_, token in added.items() if token.special)

    def encode(self, text: str, pair: str | None = None, add_special_tokens: bool = True) -> tokenizers.Encoding:
        """Whole text, never cut. Offsets count characters of the text as given."""
        return self.backend.encode(text, pair, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of the ids together. An id that the tokenizer does not know has no text."""
        text: str = self.backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """Text of one token standing alone, special tokens as they are written."""
        return self.decode([token_id], skip_special_tokens=False)
