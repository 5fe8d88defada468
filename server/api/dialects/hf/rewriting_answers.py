"""Details and stream events of translations and summaries, including texts that were split into sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from server.api.dialects.tgi import answers
from server.api.http.json_reply import encode
from server.api.http.sse import data_event
from server.serving.generation import Generation
from server.text.sentence_split import Sentence, gap_before


class SentenceDetails(msgspec.Struct):
    """One sentence of a text that was split."""

    text: str
    output: str
    input_length: int
    generated_tokens: int
    finish_reason: str


class RewriteDetails(answers.Details, kw_only=True):
    """Details of one text."""

    sentences: list[SentenceDetails] | UnsetType = UNSET
    """Only where the text was split; counts are those of all."""


class RewriteStreamDetails(answers.StreamDetails, kw_only=True):
    """Details in the last event of a stream."""

    sentences: list[SentenceDetails] | UnsetType = UNSET


class StreamedTexts:
    """The events of one text, of which each sentence follows what was sent before."""

    def __init__(
        self, parts: Sequence[Sentence], generations: Sequence[Generation], key: str, *, is_split: bool
    ) -> None:
        self._parts = parts
        self._generations = generations
        self._key = key
        self._is_split = is_split
        self._sent = ""
        self._number = 0
        self._num_events = 0
        self._is_begun = False

    def written(self, number: int, events: Sequence[answers.StreamEvent]) -> bytes:
        if number != self._number:
            self._number, self._is_begun = number, False
        return b"".join([data_event(encode(self._event(event))) for event in events])

    def _event(self, event: answers.StreamEvent) -> dict[str, Any]:
        details: answers.StreamDetails | None = event.details
        text = event.generated_text
        if self._is_split:
            self._join(event)
            is_last = self._number == len(self._parts) - 1
            details = self._summed(details) if details is not None and is_last else None
            if details is not None and (tail := self._parts[-1].tail):
                # Clients leave out the text of special tokens.
                event.token = msgspec.structs.replace(event.token, text=event.token.text + tail, special=False)
                self._sent += tail
            text = self._sent if details is not None else None
        shown: dict[str, Any] = {"index": event.index, "token": event.token}
        for name in ("top_tokens", "sequence"):
            if (value := getattr(event, name)) is not UNSET:
                shown[name] = value
        return {**shown, self._key: text, "details": details}

    def _join(self, event: answers.StreamEvent) -> None:
        """The first text of a sentence begins with what stands between it and the sentence before."""
        self._num_events += 1
        event.index = self._num_events
        if event.token.text and not self._is_begun:
            self._is_begun = True
            gap = gap_before(self._sent, self._parts[self._number].gap, event.token.text)
            event.token = msgspec.structs.replace(event.token, text=gap + event.token.text)
        self._sent += event.token.text

    def _summed(self, last: answers.StreamDetails) -> RewriteStreamDetails:
        return RewriteStreamDetails(**_sums(last, self._parts, self._generations))


def summed(
    details: Sequence[answers.Details], parts: Sequence[Sentence], generations: Sequence[Generation]
) -> RewriteDetails:
    """Of all sentences together."""
    last = details[-1]
    tops = [token for each in details if each.top_tokens is not UNSET for token in each.top_tokens]
    return RewriteDetails(
        **_sums(last, parts, generations),
        prefill=[],
        tokens=[token for each in details for token in each.tokens],
        top_tokens=UNSET if last.top_tokens is UNSET else tops,
    )


def _sums(last: answers.StreamDetails, parts: Sequence[Sentence], generations: Sequence[Generation]) -> dict[str, Any]:
    """Fields of details: counts of all sentences, the options of the last one."""
    sentences = [_sentence(*pair) for pair in zip(parts, generations, strict=True)]
    timings = [generation.timings for generation in generations]
    is_cut = any(sentence.finish_reason == "length" for sentence in sentences)
    return {
        **{name: getattr(last, name) for name in ("seed", "sequence", "stop", "parameters", "template")},
        "finish_reason": "length" if is_cut else last.finish_reason,
        "generated_tokens": sum(sentence.generated_tokens for sentence in sentences),
        "input_length": sum(sentence.input_length for sentence in sentences),
        "cached_tokens": sum(generation.cached_tokens for generation in generations),
        "num_rewinds": sum(generation.answers[0].num_rewinds for generation in generations),
        "timings": answers.Timings(
            timings[0].queue_s, timings[0].first_token_s, max(each.total_s or 0.0 for each in timings)
        ),
        "sentences": sentences,
    }


def _sentence(part: Sentence, generation: Generation) -> SentenceDetails:
    output = generation.answers[0]
    return SentenceDetails(
        text=part.text,
        output=output.text,
        input_length=len(generation.prompt.input_ids),
        generated_tokens=output.num_tokens,
        finish_reason=answers.finish_reason(output),
    )
