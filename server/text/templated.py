"""A rendered template to token ids. Special tokens are read where the template wrote them, and nowhere else.

What a client writes into a variable or a message is text, also where it looks like a special token.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import tokenizers

from server.errors import InvalidRequest
from server.sentences import echo
from server.text.plain_reader import Span
from server.text.tokenizer import Tokenizer


class VariableSpan(NamedTuple):
    """A run of characters that stands in the rendered text as it stands in a text of the client's."""

    start: int
    stop: int
    path: str
    """Which text, such as ``review`` or ``examples.0.label``."""
    offset: int
    """Where in it the run begins."""


@dataclass(frozen=True, kw_only=True)
class RenderedPrompt:
    """A prompt made by a template."""

    text: str
    template_spans: Sequence[Span]
    """Ranges of characters that the template wrote, in order and apart. The others come from the client."""
    variable_spans: Sequence[VariableSpan] = ()
    """Ranges that are the client's, character by character; what a filter made anew is in none."""
    name: str | None = None
    """None for the chat template of a model."""
    version: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The template's defaults for the request's parameters, under the client's names."""
    add_special_tokens: bool = True
    """Whether the tokenizer is to put special tokens around the text: a chat template writes its own."""

    def place(self, start: int, stop: int) -> tuple[str, int] | None:
        """Which of the client's texts a range of characters lies in, and where in it; None if in no one of them."""
        nearest = bisect_right(self.variable_spans, start, key=lambda span: span.start) - 1
        if nearest < 0 or stop > self.variable_spans[nearest].stop:
            return None
        span = self.variable_spans[nearest]
        return span.path, span.offset + start - span.start


@dataclass(frozen=True, kw_only=True)
class TemplatedIds:
    """A rendered prompt's tokens."""

    ids: list[int]
    template_spans: list[Span]
    """Ranges of tokens that the template, or the tokenizer around it, wrote alone."""
    num_leading: int
    """Special tokens that the tokenizer put before the text."""

    def truncated(self, limit: int) -> TemplatedIds:
        """The last ``limit`` tokens, after the special tokens that begin the prompt."""
        if len(self.ids) <= limit:
            return self
        lead = min(self.num_leading, limit - 1)
        cut = len(self.ids) - limit
        kept = [(max(start, lead + cut) - cut, stop - cut) for start, stop in self.template_spans]
        spans = [(start, stop) for start, stop in kept if start < stop]
        ids = self.ids[:lead] + self.ids[lead + cut :]
        return TemplatedIds(ids=ids, template_spans=_joined([(0, lead), *spans]), num_leading=lead)


def encode_rendered(tokenizer: Tokenizer, rendered: RenderedPrompt, max_tokens: int | None = None) -> TemplatedIds:
    """The tokens of the whole text, read at once; takes milliseconds, so call it in a thread.

    More than ``max_tokens`` are no more than counted: whoever takes no more will refuse them.
    Raises InvalidRequest where a client's text can only be read as a special token: some vocabularies hold ``<s>``
    as a word too.
    """
    encoding = tokenizer.encode(rendered.text, add_special_tokens=rendered.add_special_tokens)
    if max_tokens is not None and len(encoding) > max_tokens:
        return TemplatedIds(ids=encoding.ids, template_spans=[], num_leading=0)
    inside = _inside(encoding, rendered.template_spans)
    if _has_smuggled(tokenizer, rendered.text, encoding, inside):
        return _read_plainly(tokenizer, rendered)
    return _templated(encoding, encoding.ids, inside)


def _read_plainly(tokenizer: Tokenizer, rendered: RenderedPrompt) -> TemplatedIds:
    """Slower: once more, and without the client's special tokens."""
    reading = tokenizer.plain_reader.read(rendered.text, rendered.template_spans, rendered.add_special_tokens)
    tokenizer.check_ids(reading.ids)
    refused = tokenizer.special_ids - {_unk_id(tokenizer)}
    around = reading.encoding.special_tokens_mask
    for id_, is_around, is_meant in zip(reading.ids, around, reading.is_meant, strict=True):
        if id_ in refused and not is_around and not is_meant:
            raise InvalidRequest(
                f"The text contains {echo(tokenizer.token_text(id_))}, which is a special token of this model, and its "
                "tokenizer cannot encode it as text. Remove it."
            )
    return _templated(reading.encoding, reading.ids, _inside(reading.encoding, reading.spans))


def _has_smuggled(tokenizer: Tokenizer, text: str, encoding: tokenizers.Encoding, inside: Sequence[bool]) -> bool:
    """Whether a token that is not the template's is special, and neither put around the text nor an unknown word."""
    unk_id = _unk_id(tokenizer)
    # The lists are made anew, whole, whenever they are asked for.
    places = enumerate(zip(encoding.ids, encoding.special_tokens_mask, inside, strict=True))
    for place, (id_, is_around, is_own) in places:
        if id_ not in tokenizer.special_ids or is_around or is_own:
            continue
        start, stop = encoding.token_to_chars(place) or (0, 0)
        if id_ != unk_id or tokenizer.token_text(id_) in text[start:stop]:
            return True
    return False


def _unk_id(tokenizer: Tokenizer) -> int | None:
    token = tokenizer.files.unk_token
    return None if token is None else tokenizer.backend.token_to_id(token)


def _inside(encoding: tokenizers.Encoding, spans: Sequence[Span]) -> list[bool]:
    """Of each token, whether all of its characters are in one of the spans."""
    starts = [start for start, _ in spans]
    found = []
    for start, stop in encoding.offsets:
        nearest = bisect_right(starts, start) - 1
        found.append(nearest >= 0 and start < spans[nearest][1] and stop <= spans[nearest][1])
    return found


def _templated(encoding: tokenizers.Encoding, ids: list[int], inside: Sequence[bool]) -> TemplatedIds:
    around = encoding.special_tokens_mask
    leading = next((i for i, is_around in enumerate(around) if not is_around), len(ids))
    alone = [(i, i + 1) for i in range(len(ids)) if around[i] or inside[i]]
    return TemplatedIds(ids=ids, template_spans=_joined(alone), num_leading=leading)


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Without empty ones, and with neighbours made one."""
    found: list[Span] = []
    for start, stop in spans:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        elif start < stop:
            found.append((start, stop))
    return found
