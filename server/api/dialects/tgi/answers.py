"""A generation as clients of Text Generation Inference read it: answers, events, and all that is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from server.serving.generation import Generation
from server.serving.output_text import OutputText, OutputToken, ToldToken


class PrefillToken(msgspec.Struct):
    """A token of the prompt, given those before it."""

    id: int
    text: str
    logprob: float | None


class Token(msgspec.Struct):
    """One token as clients see it."""

    id: int
    text: str
    logprob: float | None
    special: bool


class Timings(msgspec.Struct):
    """Seconds from the request's admission; null for what was not reached."""

    queue_s: float | None
    first_token_s: float | None
    total_s: float | None


class Outcome(msgspec.Struct, kw_only=True):
    """How one sequence ended."""

    finish_reason: str
    generated_tokens: int
    seed: int
    sequence: int
    """The same seed and number give the same tokens again."""
    stop: str | int | None
    """The stop string or the id of the token that ended it."""
    num_rewinds: int
    score: float | UnsetType | None = UNSET
    """What ranks it: of beams the hypothesis' score, of ``best_of`` the mean log-probability or the label's score."""


class StreamDetails(Outcome, kw_only=True):
    """What is told in a sequence's last event."""

    input_length: int
    cached_tokens: int
    timings: Timings
    parameters: dict[str, dict[str, Any]] | UnsetType = UNSET
    """Every option that had an effect: its ``value`` and its ``origin``."""
    template: str | UnsetType = UNSET
    """Name and version, where the prompt was made by one."""


class SequenceDetails(Outcome, kw_only=True):
    """Another sequence of the same prompt, in a JSON answer."""

    generated_text: str
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | UnsetType = UNSET


class Details(StreamDetails, kw_only=True):
    """What is told in a JSON answer, of its first sequence and of all."""

    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | UnsetType = UNSET
    best_of_sequences: list[SequenceDetails] | UnsetType = UNSET
    """All other sequences that were computed, the best first where they are ranked."""


class StreamEvent(msgspec.Struct, kw_only=True):
    """One token; the last one of a sequence carries the whole text and the details."""

    index: int
    token: Token
    top_tokens: list[Token] | UnsetType = UNSET
    sequence: int | UnsetType = UNSET
    """Only where there are several."""
    generated_text: str | None = None
    details: StreamDetails | None = None


class Answer(msgspec.Struct, omit_defaults=True):
    """One input's output."""

    generated_text: str
    generated_texts: list[str] | None = None
    """Where several were asked for: the first one is ``generated_text``."""
    details: Details | None = None


def answer(generation: Generation, tokens: Sequence[OutputToken]) -> Answer:
    """``tokens`` are those of all its outputs."""
    texts = [_text(generation, output) for output in generation.answers]
    details = _details(generation, tokens) if generation.prompt.options.details else None
    return Answer(texts[0], texts if len(texts) > 1 else None, details)


def events(generation: Generation, tokens: Sequence[OutputToken]) -> list[StreamEvent]:
    """One for each token; the last token of an output that has ended is among them."""
    if len(tokens) == 1:
        return [_event(generation, tokens[0], is_last=True)]
    last = {token.sequence: token for token in tokens}
    return [_event(generation, token, last[token.sequence] is token) for token in tokens]


def _event(generation: Generation, token: OutputToken, is_last: bool) -> StreamEvent:
    output = generation.outputs[token.sequence]
    event = StreamEvent(index=token.place, token=_token(token))
    if generation.prompt.params.tells_others:
        event.top_tokens = _top(token)
    if len(generation.outputs) > 1:
        event.sequence = token.sequence
    if is_last and output.finish_reason is not None:
        event.generated_text = _text(generation, output)
        event.details = StreamDetails(**_outcome(generation, output), **_common(generation))
    return event


def _details(generation: Generation, tokens: Sequence[OutputToken]) -> Details:
    by_output = _by_output(generation, tokens)
    first, *others = generation.ranked
    prefill = _prefill(generation)
    return Details(
        **_outcome(generation, first),
        **_common(generation),
        **_tokens(generation, by_output[first.number]),
        prefill=prefill,
        best_of_sequences=[
            SequenceDetails(
                **_outcome(generation, output),
                **_tokens(generation, by_output[output.number]),
                generated_text=_text(generation, output),
                prefill=prefill,
            )
            for output in others
        ]
        or UNSET,
    )


def _by_output(generation: Generation, tokens: Sequence[OutputToken]) -> dict[int, list[OutputToken]]:
    """The tokens that were computed; the text of an end that came by itself is its output's last token's."""
    found: dict[int, list[OutputToken]] = {output.number: [] for output in generation.outputs}
    for token in tokens:
        mine = found[token.sequence]
        if token.place <= generation.outputs[token.sequence].num_tokens:
            mine.append(token)
        elif mine:
            mine[-1] = mine[-1]._replace(text=mine[-1].text + token.text)
    return found


def _outcome(generation: Generation, output: OutputText) -> dict[str, Any]:
    return {
        "finish_reason": finish_reason(output),
        "generated_tokens": output.num_tokens,
        "seed": generation.prompt.params.seed,
        "sequence": output.number,
        "stop": output.stop,
        "num_rewinds": output.num_rewinds,
        "score": UNSET if output.score is None else output.score,
    }


def _common(generation: Generation) -> dict[str, Any]:
    timings = generation.timings
    return {
        "input_length": len(generation.prompt.input_ids),
        "cached_tokens": generation.cached_tokens,
        "timings": Timings(timings.queue_s, timings.first_token_s, timings.total_s),
        "parameters": generation.prompt.parameters if generation.prompt.options.return_parameters else UNSET,
        "template": generation.prompt.template or UNSET,
    }


def _tokens(generation: Generation, tokens: Sequence[OutputToken]) -> dict[str, Any]:
    return {
        "tokens": [_token(token) for token in tokens],
        "top_tokens": [_top(token) for token in tokens] if generation.prompt.params.tells_others else UNSET,
    }


def _token(token: OutputToken) -> Token:
    return Token(token.id, token.text, token.logprob, token.special)


def _top(token: OutputToken) -> list[Token]:
    return [_told_token(top) for top in token.top or ()]


def _told_token(token: ToldToken) -> Token:
    return Token(token.id, token.text, token.logprob, token.special)


def _prefill(generation: Generation) -> list[PrefillToken]:
    return [PrefillToken(token.id, token.text, token.logprob) for token in generation.prefill]


def _text(generation: Generation, output: OutputText) -> str:
    return generation.prompt.text + output.text if generation.prompt.options.return_full_text else output.text


def finish_reason(output: OutputText) -> str:
    """In the words of Text Generation Inference, and two of ours."""
    if output.finish_reason in ("length", "max_time", "banned_phrase"):
        return output.finish_reason
    return "eos_token" if output.ended_by_end_token else "stop_sequence"
