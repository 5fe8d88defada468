"""From a body of OpenAI's text routes to generations, and from their steps to a stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from server.api.disconnect import until_disconnect
from server.api.openai.lookup import model_name
from server.api.openai.options import check_told, clients_words, generate_options
from server.api.openai.schemas import TextBody
from server.api.openai.shapes import encode, usage
from server.api.sse import EventStream, data_event, event_stream
from server.serving.generation import Generation, OutputToken
from server.serving.generator import ServedGenerator
from server.serving.prompts import PromptSource
from server.serving.record import RequestRecord
from server.serving.registry import Registry

DONE = b"data: [DONE]\n\n"


def generator_of(request: Request, body: TextBody) -> ServedGenerator:
    """The model that the body means, noted in the request's record."""
    registry: Registry = request.app.state.registry
    generator = registry.get("generate", model_name(registry, "generate", body.model))
    record: RequestRecord = request.state.record
    record.task, record.model, record.streamed = "generate", generator.name, bool(body.stream)
    return generator


@dataclass
class TextWork:
    """One request, understood."""

    request: Request
    body: TextBody
    generator: ServedGenerator
    renamed: Mapping[str, str]
    """Names of ours that errors may hold, and what the client calls them."""
    generations: list[Generation] = field(default_factory=list)

    @property
    def record(self) -> RequestRecord:
        record: RequestRecord = self.request.state.record
        return record

    async def prepare(self, source: PromptSource, added: Mapping[str, Any]) -> None:
        """Make the generations. All that can be refused is refused here."""
        check_told(self.body)
        self.record.num_inputs = source.num_prompts
        with clients_words(self.body, self.renamed):
            options = generate_options(self.body, self.generator.ready, added)
            prompts = await until_disconnect(self.request, self.generator.prepare(source, options))
        self.generations = [self.generator.start(prompt) for prompt in prompts]

    async def run(self) -> list[list[OutputToken]]:
        """Each generation's tokens, of all its outputs."""
        with clients_words(self.body, self.renamed):
            return await until_disconnect(self.request, self.generator.generate(self.generations, self.record))

    async def stream(self, chunks: Chunks) -> EventStream:
        empty_chunk = data_event(encode(chunks.empty()))
        return await event_stream(self.request, self._events(chunks), error_event=data_event, empty_chunk=empty_chunk)

    async def _events(self, chunks: Chunks) -> AsyncGenerator[bytes, None]:
        wanted = self.body.stream_options
        has_usage = wanted is not None and bool(wanted.include_usage)
        is_continuous = has_usage and wanted is not None and bool(wanted.continuous_usage_stats)
        with clients_words(self.body, self.renamed):
            async with aclosing(self.generator.stream_all(self.generations, self.record)) as steps:
                async for number, tokens in steps:
                    found = chunks.of_step(number, by_output(tokens))
                    if has_usage:
                        so_far = usage(self.generations) if is_continuous else None
                        found = [{**chunk, "usage": so_far} for chunk in found]
                    yield b"".join([data_event(encode(chunk)) for chunk in found])
        last = {**chunks.head, "choices": [], "usage": usage(self.generations)}
        yield (data_event(encode(last)) if has_usage else b"") + DONE


class Chunks(ABC):
    """A dialect's way to write a stream."""

    def __init__(self, head: Mapping[str, Any], nothing: Mapping[str, Any]) -> None:
        self.head = head
        """What every chunk begins with."""
        self.nothing = nothing

    def empty(self) -> dict[str, Any]:
        """A chunk that says nothing."""
        return {**self.head, "choices": [self.nothing]}

    @abstractmethod
    def of_step(self, number: int, tokens: Mapping[int, Sequence[OutputToken]]) -> list[dict[str, Any]]:
        """The chunks of a generation's step, given its number and each output's new tokens."""


def by_output(tokens: Sequence[OutputToken]) -> dict[int, list[OutputToken]]:
    """Each output's tokens, by its number."""
    found: dict[int, list[OutputToken]] = {}
    for token in tokens:
        found.setdefault(token.sequence, []).append(token)
    return found
