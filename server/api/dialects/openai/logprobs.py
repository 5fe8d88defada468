"""Log-probabilities in the two shapes of OpenAI's routes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from server.protocol import TokenLogprob
from server.serving.generation import Generation
from server.serving.output_text import OutputToken
from server.text.detokenizer import Detokenizer
from server.text.tokenizer import Tokenizer

IMPOSSIBLE = -9999.0
"""What OpenAI writes for a token that could not come: JSON has no infinity."""


def finite(logprob: float) -> float:
    return max(logprob, IMPOSSIBLE)


class ChatToken(msgspec.Struct):
    """A token by itself; the bytes of all are the text's, also where one ends in the middle of a character."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(ChatToken):
    """An output's token, and the most likely ones at its place or those that were asked for."""

    top_logprobs: list[ChatToken]


class ChatLogprobs(msgspec.Struct):
    """Of the tokens of one answer or chunk."""

    content: list[ChatLogprob]
    refusal: None = None


class ChatTeller:
    """Writes a chat's log-probabilities: of each token and ``num_others`` beside it, called by ``name``."""

    def __init__(self, tokenizer: Tokenizer, num_others: int, name: Callable[[int], str]) -> None:
        self._tokenizer = tokenizer
        self._num_others = num_others
        self._name = name

    def tell(self, tokens: Iterable[OutputToken]) -> ChatLogprobs:
        """The end token is among them: it was drawn like the others."""
        return ChatLogprobs([self._entry(token) for token in tokens if token.logprob is not None])

    def _entry(self, token: OutputToken) -> ChatLogprob:
        told = (token.top or [])[: self._num_others]
        top = [ChatToken(*self._written(each.id, each.logprob)) for each in told]
        return ChatLogprob(*self._written(token.id, token.logprob), top)

    def _written(self, token_id: int, logprob: float | None) -> tuple[str, float, list[int]]:
        text = self._tokenizer.token_text(token_id)
        return self._name(token_id), finite(logprob or 0.0), list(_bytes(self._tokenizer, token_id, text))


def _bytes(tokenizer: Tokenizer, token_id: int, text: str) -> bytes:
    if token_id in tokenizer.fallback_bytes:
        return tokenizer.fallback_bytes[token_id]
    is_byte_level = [step for step in tokenizer.decoder_types if step != "Fuse"] == ["ByteLevel"]
    return (tokenizer.token_bytes(token_id) if is_byte_level else b"") or text.encode()


class CompletionLogprobs(msgspec.Struct):
    """Parallel lists, one entry a token."""

    text_offset: list[int] = []
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    """The most likely tokens, or those that were asked for, and the one that came.

    lm-evaluation-harness compares their numbers for equality."""

    def extend(self, other: CompletionLogprobs) -> None:
        """Go on with those of the tokens after these."""
        for name in self.__struct_fields__:
            getattr(self, name).extend(getattr(other, name))


class CompletionScribe:
    """Writes one choice's log-probabilities as its text grows."""

    def __init__(self, tokenizer: Tokenizer, num_top: int, num_others: int, name: Callable[[int], str]) -> None:
        """Reports ``num_top`` tokens at each position of the prompt, and ``num_others`` at each of the output.

        ``name``: what the log-probabilities call a token.
        """
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._num_others = num_others
        self._name = name
        self._offset = 0
        """Characters of the choice's text so far."""

    def skip(self, text: str) -> None:
        """Text that stands in the choice and has no entries."""
        self._offset += len(text)

    def prompt(self, generation: Generation) -> CompletionLogprobs:
        """Of the prompt's tokens; nothing comes before the first. Slow for a long one."""
        found, scores = CompletionLogprobs(), generation.prompt_logprobs
        assert scores is not None
        detokenizer = Detokenizer(self._tokenizer)
        tops: Sequence[Sequence[TokenLogprob]] = scores.top_logprobs or [()] * len(scores.logprobs)
        start = self._offset
        for i, token_id in enumerate(generation.prompt.ids):
            logprob = scores.logprobs[i - 1] if i else None
            top = [(pair.token_id, pair.logprob) for pair in tops[i - 1][: self._num_top]] if i else []
            self._add(found, token_id, logprob, top)
            self._offset += len(detokenizer.push(token_id))
        self._offset = start + len(generation.prompt.text)
        return found

    def tokens(self, tokens: Iterable[OutputToken]) -> CompletionLogprobs:
        """Of an output's next tokens."""
        found = CompletionLogprobs()
        for token in tokens:
            if token.logprob is not None:
                others = (token.top or [])[: self._num_others]
                self._add(found, token.id, token.logprob, [(told.id, told.logprob or 0.0) for told in others])
            self._offset += len(token.text)
        return found

    def _add(
        self, found: CompletionLogprobs, token_id: int, logprob: float | None, top: Sequence[tuple[int, float]]
    ) -> None:
        found.text_offset.append(self._offset)
        found.tokens.append(self._name(token_id))
        found.token_logprobs.append(None if logprob is None else finite(logprob))
        found.top_logprobs.append(None if logprob is None else self._top(token_id, logprob, top))

    def _top(self, token_id: int, logprob: float, top: Sequence[tuple[int, float]]) -> dict[str, float]:
        """By text, and by id where two tokens have one text, such as parts of a character: none may be lost."""
        told = list(top)
        if all(id_ != token_id for id_, _ in told):
            told.append((token_id, logprob))
        found: dict[str, float] = {}
        for id_, value in told:
            text = self._name(id_)
            found[f"token_id:{id_}" if text in found else text] = finite(value)
        return found
