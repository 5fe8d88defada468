"""From a body of OpenAI's text routes to generations, and from their steps to a stream."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from server.api.bodies.lookup import model_name
from server.api.context import Context
from server.api.http.json_reply import encode
from server.api.http.sse import EventStream, data_event
from server.api.text.options import check_told, clients_names, generate_options
from server.api.text.schemas import TextBody
from server.api.text.shapes import Usage, head, usage
from server.sentences import Reader
from server.serving.generation import Generation
from server.serving.generator import ServedGenerator
from server.serving.output_text import OutputToken
from server.serving.prompts import PromptSource
from server.serving.record import RequestRecord
from server.tasks import GENERATE

DONE = b"data: [DONE]\n\n"
NOTHING: Mapping[str, Any] = {}


async def generator_of(context: Context, body: TextBody) -> ServedGenerator:
    """The model that the body means, with the adapters that it adds, noted in the request's record."""
    generator = context.registry.get(ServedGenerator, model_name(context.registry, ServedGenerator, body.model))
    if body.adapters:
        generator = await context.until_disconnect(context.front.mixtures.find(generator, body.adapters))
    record = context.record
    record.task, record.model, record.streamed = GENERATE.name, generator.name, bool(body.stream)
    return generator


@dataclass
class TextWork:
    """One request, understood."""

    context: Context
    body: TextBody
    generator: ServedGenerator
    renamed: Mapping[str, str]
    """Names of ours that errors may hold, and what the client calls them."""
    generations: list[Generation] = field(default_factory=list)
    created: int = field(default_factory=lambda: int(time.time()))
    """Seconds since 1970, for answers that tell it more than once."""
    is_scored: bool = False
    """Nothing is generated: the answer tells of the prompt alone. The one token that this takes is dropped."""
    reasoning_tokens: int | None = None
    """Of all outputs that were read; None where none is looked for."""

    @property
    def record(self) -> RequestRecord:
        return self.context.record

    def head(self, kind: str, id_prefix: str) -> dict[str, Any]:
        """What an answer and all chunks of a stream begin with."""
        origin = self.generator.origin
        return {**head(kind, id_prefix, self.record), "system_fingerprint": origin.fingerprint}

    def usage(self) -> Usage:
        """Of all that was computed so far."""
        return usage(self.generations, self.reasoning_tokens, is_scored=self.is_scored)

    async def prepare(self, source: PromptSource, added: Mapping[str, Any]) -> None:
        """Make the generations. All that can be refused is refused here."""
        check_told(self.body)
        self.record.num_inputs = source.num_prompts
        self.record.reader = Reader({**clients_names(self.body), **self.renamed})
        options = generate_options(self.body, self.generator.ready, added)
        prompts = await self.context.until_disconnect(self.generator.prepare(source, options))
        self.generations = [self.generator.start(prompt) for prompt in prompts]

    async def run(self) -> list[list[OutputToken]]:
        """Each generation's tokens, of all its outputs."""
        return await self.context.until_disconnect(self.generator.generate(self.generations, self.record))

    async def stream(self, writer: StreamWriter) -> EventStream:
        events = self._events(writer)
        return await self.context.stream(events, error_body=writer.error, empty_chunk=writer.empty())

    async def _events(self, writer: StreamWriter) -> AsyncGenerator[bytes, None]:
        if len(self.generations) == 1:
            async with aclosing(self.generator.stream(self.generations[0], self.record)) as steps:
                async for tokens in steps:
                    yield writer.step(0, by_output(tokens))
        else:
            async with aclosing(self.generator.stream_all(self.generations, self.record)) as numbered:
                async for number, tokens in numbered:
                    yield writer.step(number, by_output(tokens))
        yield writer.end()


class StreamWriter(ABC):
    """A dialect's way to write a stream. Nothing is written before the first token."""

    @abstractmethod
    def step(self, number: int, tokens: Mapping[int, Sequence[OutputToken]]) -> bytes:
        """The events of a generation's step, given its number and each output's new tokens."""

    @abstractmethod
    def end(self) -> bytes:
        """What comes when all is done."""

    @abstractmethod
    def empty(self) -> bytes | None:
        """An event that says nothing, if there is such a thing."""

    def error(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the last event of a stream that breaks holds; ``body`` is the dialect's error."""
        return body


class Chunks(StreamWriter):
    """OpenAI's older way: chunks of choices, perhaps one with the usage, and an end mark."""

    def __init__(self, work: TextWork, head: Mapping[str, Any], nothing: Mapping[str, Any]) -> None:
        self.work = work
        self.nothing = nothing
        """A choice that says nothing."""
        self._head_json = encode(head)[:-1] + b","
        self.once: Mapping[str, Any] = NOTHING
        """What the first chunk alone tells."""
        options = getattr(work.body, "stream_options", None)
        self._has_usage = options is not None and bool(options.include_usage)
        self._is_continuous = options is not None and bool(options.continuous_usage_stats)

    @abstractmethod
    def choices(self, number: int, tokens: Mapping[int, Sequence[OutputToken]]) -> list[dict[str, Any]]:
        """The choices of a generation's step, one for each chunk."""

    def step(self, number: int, tokens: Mapping[int, Sequence[OutputToken]]) -> bytes:
        choices = self.choices(number, tokens)
        so_far = self.work.usage() if self._is_continuous else None
        first, self.once = self.once, {}
        told: list[Mapping[str, Any]] = [first, *[{}] * len(choices)]
        return b"".join([self._chunk([choice], so_far, more) for choice, more in zip(choices, told, strict=False)])

    def _chunk(
        self, choices: Sequence[Mapping[str, Any]], so_far: Usage | None = None, more: Mapping[str, Any] = NOTHING
    ) -> bytes:
        told = {"usage": so_far} if self._has_usage else {}
        # What all chunks have in common is written once: the brace that ends it makes room for the rest.
        return data_event(self._head_json + encode({"choices": choices, **told, **more})[1:])

    def end(self) -> bytes:
        return (self._chunk([], self.work.usage()) if self._has_usage else b"") + DONE

    def empty(self) -> bytes:
        return self._chunk([self.nothing])


def by_output(tokens: Sequence[OutputToken]) -> dict[int, list[OutputToken]]:
    """Each output's tokens, by its number."""
    if len(tokens) == 1:
        return {tokens[0].sequence: [*tokens]}
    found: dict[int, list[OutputToken]] = {}
    for token in tokens:
        found.setdefault(token.sequence, []).append(token)
    return found
