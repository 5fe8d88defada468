"""One output of a prompt as it grows: its tokens become text up to its end."""

from __future__ import annotations

import math
from typing import NamedTuple

from server.errors import SluiceError
from server.protocol import FinishReason, TokenLogprob, Tokens
from server.serving.prompt import Prompt
from server.text.safe_text import SafeText
from server.text.tokenizer import Tokenizer


class ToldToken(NamedTuple):
    """A token that was likely, or that stands in the prompt, with its own text."""

    id: int
    text: str
    logprob: float | None
    special: bool


class OutputToken(NamedTuple):
    """One new token and the text that it made safe to send."""

    id: int
    text: str
    """Often empty: a character or a possible stop string is not complete."""
    special: bool
    logprob: float | None
    sequence: int
    """Number of the output that it belongs to."""
    place: int
    """In the output, from 1 on."""
    top: list[ToldToken] | None = None
    """The most likely tokens at its place, if asked for."""


class OutputText:
    """One output of a prompt: its tokens become text up to its end."""

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt, number: int) -> None:
        self.number = number
        self.num_tokens = 0
        self.num_rewinds = 0
        self.finish_reason: FinishReason | None = None
        self.ended_by_end_token = False
        """Of a finish reason ``stop``: the model ended it, not the client's stop string or stop token."""
        self.stop: str | int | None = None
        """What ended it: the stop string, or the id of the token."""
        self.score: float | None = None
        """What its rank among the outputs goes by: a hypothesis' score, or what the ranking made of it."""
        self.sum_logprobs = 0.0
        self._params = prompt.params
        self._stop_strings = prompt.stop
        end_ids = () if prompt.params.ignore_eos else prompt.params.end_token_ids
        self._ending_ids = {*end_ids, *prompt.params.stop_token_ids}
        self._tokenizer = tokenizer
        self._special_ids = tokenizer.special_ids
        self._safe = SafeText(tokenizer, prompt.ids, prompt.stop, prompt.banned, prompt.written_ids)
        self._keeps_stop = prompt.keeps_stop
        self._written_ids = prompt.written_ids
        self._is_over = None if prompt.end_watch is None else prompt.end_watch(prompt.text)
        self._texts: list[str] = []
        self._last_id: int | None = None

    @property
    def text(self) -> str:
        """All text so far that is safe to send."""
        return "".join(self._texts)

    @property
    def mean_logprob(self) -> float:
        """Per token; of no tokens, the least."""
        mean = self.sum_logprobs / self.num_tokens if self.num_tokens else -math.inf
        return -math.inf if math.isnan(mean) else mean

    def add(self, reply: Tokens) -> list[OutputToken]:
        """The reply's tokens with their texts, for as long as the output has no end. What follows that is dropped."""
        self.num_rewinds = reply.num_rewinds
        tokens = []
        for i, token_id in enumerate(reply.token_ids):
            is_last = i == len(reply.token_ids) - 1
            text = self._add_token(token_id, reply.finish_reason if is_last else None)
            tokens.append(self._output_token(token_id, text, reply, i))
            if self.finish_reason is not None:
                break
        else:
            if reply.finish_reason is not None:
                tokens.append(self._end_token(reply.finish_reason))
        if self.finish_reason is not None and reply.score is not None:
            self.score = reply.score
        return tokens

    def _add_token(self, token_id: int, finish_reason: FinishReason | None) -> str:
        self.num_tokens += 1
        self._last_id = token_id
        has_text = finish_reason != "stop" or token_id not in self._ending_ids
        text = self._safe.push(token_id) if has_text else ""
        if self._safe.may_end:
            if self._safe.has_banned:
                return text + self._end("banned_phrase")
            if self._safe.stop_string is not None:
                return text + self._end("stop")
        if self._is_over is not None and self._is_over(text):
            return text + self._end("stop")
        return text if finish_reason is None else text + self._end(finish_reason)

    def _end(self, finish_reason: FinishReason) -> str:
        """The text that was held back until now."""
        if finish_reason in ("abort", "error"):
            raise unfinished(finish_reason)
        text = self._safe.finish()
        self.finish_reason = "banned_phrase" if self._safe.has_banned else finish_reason
        if self.finish_reason == "stop":
            self._note_stop()
        return text + self._kept_stop() if self._keeps_stop else text

    def _kept_stop(self) -> str:
        """What ended the output, as text; a special token has one where it was asked for or is written."""
        if self.finish_reason != "stop" or self.stop is None:
            return ""
        if isinstance(self.stop, str):
            return self.stop
        is_hidden = self.stop in self._special_ids and self.stop not in self._written_ids
        return "" if is_hidden else self._tokenizer.token_text(self.stop)

    def _note_stop(self) -> None:
        last_id = self._last_id
        self.stop = self._safe.stop_string
        if self.stop is not None:
            return
        if last_id is not None and last_id in self._ending_ids:
            written = self._tokenizer.token_text(last_id)
            self.stop = written if written in self._stop_strings else last_id
            self.ended_by_end_token = last_id in self._params.end_token_ids and self.stop == last_id
        else:
            # The grammar allows nothing more: the output is whole, as if the model had ended it.
            self.ended_by_end_token = self._params.grammar is not None

    def _end_token(self, finish_reason: FinishReason) -> OutputToken:
        """The end as a token, for clients know no event without one; it is not counted.

        For an output whose last token came before, and only its finish reason now: one that has gone back to before a
        banned phrase for the last time, or a request that is resumed at its very end.
        """
        end_id = next(iter(self._params.end_token_ids), 0)
        text = self._end(finish_reason)
        self._texts.append(text)
        is_special = not text and end_id in self._special_ids
        return OutputToken(end_id, text, is_special, None, self.number, self.num_tokens + 1)

    def _output_token(self, token_id: int, text: str, reply: Tokens, i: int) -> OutputToken:
        self._texts.append(text)
        logprob = None
        if reply.logprobs is not None:
            logprob = reply.logprobs[i]
            self.sum_logprobs += logprob or 0.0
        top = [self._told(pair) for pair in reply.top_logprobs[i]] if reply.top_logprobs is not None else None
        # Clients leave out the text of special tokens; what was held back until now must reach them.
        is_special = not text and token_id in self._special_ids
        return OutputToken(token_id, text, is_special, logprob, self.number, self.num_tokens, top)

    def _told(self, pair: TokenLogprob) -> ToldToken:
        return told_token(self._tokenizer, pair.token_id, pair.logprob)


def told_token(tokenizer: Tokenizer, token_id: int, logprob: float | None) -> ToldToken:
    """A token by itself, as the tokenizer writes it."""
    return ToldToken(token_id, tokenizer.token_text(token_id), logprob, token_id in tokenizer.special_ids)


def unfinished(finish_reason: FinishReason) -> SluiceError:
    if finish_reason == "abort":
        return SluiceError("The request was cancelled: the client did not read its output in time.")
    return SluiceError("The request failed.")
