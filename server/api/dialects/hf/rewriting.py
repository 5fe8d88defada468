"""What ``/translate`` and ``/summarize`` share: their parameters, how they run, and Hugging Face's shape of answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from fastapi import Response

from server.api.bodies.schemas import GenerateParameters
from server.api.context import Context
from server.api.dialects.hf.rewriting_answers import StreamedTexts, summed
from server.api.dialects.tgi import answers
from server.api.http.json_reply import json_reply
from server.errors import ConflictingParameters, UnsupportedParameter
from server.length_errors import BatchTooLarge
from server.sentences import Reader, sentence
from server.serving import text_threads
from server.serving.generation import Generation
from server.serving.generator import ServedGenerator
from server.serving.options.reading import given
from server.serving.options.table import GenerateOptions
from server.serving.output_text import OutputToken
from server.serving.prompts import PromptSource
from server.text.clean_up import clean_up
from server.text.languages import Direction
from server.text.sentence_split import Sentence, has_words, join_sentences, worded_sentences

Split = Literal["sentences"]
ADVICE = sentence("Shorten it, set {split} to sentences, or set {truncate} to cut its end.")
ADVICE_OF_SENTENCE = sentence("It is one sentence of the text. Shorten it, or set {truncate} to cut its end.")


class RewriteParameters(GenerateParameters):
    """Every option of ``/generate``, and Hugging Face's parameters."""

    truncation: Literal["do_not_truncate", "longest_first", "only_first", "only_second"] | None = None
    """``longest_first`` and ``only_first`` cut the end of a text that is too long; ``do_not_truncate``, the default,
    refuses it. ``only_second`` is for pairs and is refused."""
    clean_up_tokenization_spaces: bool | None = None
    """Remove the spaces before punctuation and English contractions. Not for streams."""
    generate_parameters: GenerateParameters | None = None
    """Options of ``/generate``, where Hugging Face's clients put them. An option stands here or beside, not in both."""


@dataclass(frozen=True, kw_only=True)
class Rewriting:
    """What one request asks for."""

    texts: Sequence[str]
    key: str
    """The name of an output: ``translation_text`` or ``summary_text``."""
    options: GenerateOptions
    direction: Direction
    task_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Options that the model sets for the route's task."""
    split: Split | None = None
    several: str = "num_return_sequences"
    """The field that asks for several outputs."""
    is_cleaned: bool = False
    keeps_wordless: bool = False
    """Whether a text without words is answered with itself; else the model reads it, and a blank one is refused."""
    body: Mapping[str, Any] = field(default_factory=dict)
    """For the rules on options: the fields beside the parameters."""


def reader(parameters: RewriteParameters) -> Reader:
    """How the client writes our fields."""
    nested = given(parameters.generate_parameters) if parameters.generate_parameters else {}
    renamed = {name: f"parameters.generate_parameters.{name}" for name in nested}
    return Reader(renamed, parameters=[name for name in type(parameters).model_fields if name not in nested])


def options_of(parameters: RewriteParameters, max_source_len: int) -> GenerateOptions:
    """The options of both places. Raises `InvalidRequest`."""
    own = given(parameters)
    nested = given(parameters.generate_parameters) if parameters.generate_parameters else {}
    for name in own.keys() & nested.keys():
        words = f"parameters.{name} and parameters.generate_parameters.{name} cannot be combined: send one of them."
        error = ConflictingParameters(name, "generate_parameters", "")
        # By our name both are the same field.
        error.words = words
        raise error
    options = {**own, **nested}
    if parameters.truncation == "do_not_truncate" and options.get("truncate") is not None:
        raise ConflictingParameters(
            "truncation", "truncate", "do_not_truncate refuses a long text and truncate cuts it"
        )
    if parameters.truncation == "only_second":
        raise UnsupportedParameter("truncation", "only_second is for pairs of texts; set longest_first")
    if parameters.truncation in ("longest_first", "only_first"):
        if "truncate" in options:
            raise ConflictingParameters("truncation", "truncate", "both cut the text; send one of them")
        options["truncate"] = max_source_len
    return GenerateOptions.model_construct(**options)


class Rewriter:
    """One request at work: each text, or each of its sentences, is a prompt."""

    def __init__(self, context: Context, generator: ServedGenerator, wanted: Rewriting) -> None:
        self.context = context
        self.generator = generator
        self.wanted = wanted
        self.parts: list[list[Sentence]] = []
        self.generations: list[Generation] = []

    async def prepare(self) -> None:
        """Make the generations. All that can be refused is refused here."""
        wanted = self.wanted
        self.parts = await self.context.until_disconnect(self._split())
        if wanted.texts and not any(self.parts):
            return
        if wanted.split and wanted.direction.is_target_in_text:
            reason = sentence("only the first sentence would have the target's tag; set {tgt_lang} instead of the tag")
            raise ConflictingParameters("split", "inputs", reason)
        source = PromptSource(
            texts=[part.text for parts in self.parts for part in parts],
            max_prompts=self._max_sentences if wanted.split else None,
            direction=wanted.direction,
            advice=ADVICE_OF_SENTENCE if wanted.split else ADVICE,
            task_defaults=wanted.task_defaults,
            body=wanted.body,
        )
        prompts = await self.context.until_disconnect(self.generator.prepare(source, wanted.options))
        if wanted.split and prompts[0].num_answers > 1:
            raise ConflictingParameters("split", wanted.several, "a text that is split has one output")
        self.generations = [self.generator.start(prompt) for prompt in prompts]

    @property
    def _max_sentences(self) -> int:
        return self.context.front.config.max_encode_inputs

    async def _split(self) -> list[list[Sentence]]:
        """The parts of each text."""
        texts, limit = self.wanted.texts, self._max_sentences
        # One more than the limit tells that there are too many.
        found = await text_threads.each(
            lambda text: _parts(text, self.wanted, at_most=limit + 1), texts, sum(map(len, texts))
        )
        number = sum(map(len, found))
        if self.wanted.split and number > limit:
            raise BatchTooLarge(number, limit, "sentences", is_least=True)
        return found

    async def replies(self) -> list[dict[str, Any]]:
        """One for each text."""
        record = self.context.record
        tokens: Sequence[Sequence[OutputToken]] = []
        if self.generations:
            tokens = await self.context.until_disconnect(self.generator.generate(self.generations, record))
        found, start = [], 0
        for text, parts in zip(self.wanted.texts, self.parts, strict=True):
            end = start + len(parts)
            own = self._reply(parts, self.generations[start:end], tokens[start:end]) if parts else {}
            found.append(own or {self.wanted.key: text})
            start = end
        return found

    def _reply(
        self, parts: Sequence[Sentence], generations: Sequence[Generation], tokens: Sequence[Sequence[OutputToken]]
    ) -> dict[str, Any]:
        own = [answers.answer(*pair) for pair in zip(generations, tokens, strict=True)]
        key = self.wanted.key
        if self.wanted.split is None:
            reply: dict[str, Any] = {key: self._cleaned(own[0].generated_text)}
            if own[0].generated_texts is not None:
                reply[f"{key}s"] = [self._cleaned(text) for text in own[0].generated_texts]
            details: answers.Details | None = own[0].details
        else:
            joined = join_sentences([part.gap for part in parts], [answer.generated_text for answer in own])
            reply = {key: self._cleaned(joined + parts[-1].tail)}
            of_parts = [answer.details for answer in own if answer.details is not None]
            details = summed(of_parts, parts, generations) if of_parts else None
        return reply if details is None else {**reply, "details": details}

    def _cleaned(self, text: str) -> str:
        return clean_up(text) if self.wanted.is_cleaned else text

    async def events(self) -> AsyncGenerator[bytes, None]:
        """One event per token of the only text. Sentences come in their order."""
        (parts,) = self.parts
        texts = StreamedTexts(parts, self.generations, self.wanted.key, is_split=self.wanted.split is not None)
        if self.wanted.split is None:
            async with aclosing(self.generator.stream(self.generations[0], self.context.record)) as steps:
                async for tokens in steps:
                    yield texts.written(0, answers.events(self.generations[0], tokens))
            return
        async with (
            aclosing(self.generator.stream_all(self.generations, self.context.record)) as numbered,
            aclosing(_in_order(numbered, self.generations)) as ordered,
        ):
            async for number, events in ordered:
                yield texts.written(number, events)


async def rewritten(context: Context, served: ServedGenerator, wanted: Rewriting) -> Response:
    """The answer in Hugging Face's shape."""
    is_streamed = bool(wanted.body.get("stream"))
    record = context.record
    record.task, record.model = served.ready.task, served.name
    record.num_inputs, record.streamed = len(wanted.texts), is_streamed
    if is_streamed and wanted.is_cleaned:
        raise ConflictingParameters("clean_up_tokenization_spaces", "stream", "what was sent is not changed any more")
    rewriter = Rewriter(context, served, wanted)
    await rewriter.prepare()
    return await context.stream(rewriter.events()) if is_streamed else json_reply(await rewriter.replies())


def _parts(text: str, wanted: Rewriting, at_most: int) -> list[Sentence]:
    """What the model reads of the text; nothing of a text without words that is kept.

    Another text without a sentence is left whole; if it is blank, it is refused where all texts are.
    """
    if wanted.keeps_wordless and not has_words(text):
        return []
    return list(islice(worded_sentences(text), at_most) if wanted.split else []) or [Sentence("", text)]


async def _in_order(
    numbered: AsyncGenerator[tuple[int, list[OutputToken]], None], generations: Sequence[Generation]
) -> AsyncGenerator[tuple[int, list[answers.StreamEvent]], None]:
    """Each generation's events after all of those before it."""
    waiting: list[list[answers.StreamEvent]] = [[] for _ in generations]
    ended: set[int] = set()
    current = 0
    async for number, tokens in numbered:
        # At once: what the event says of a token depends on whether its output goes on.
        waiting[number] += answers.events(generations[number], tokens)
        if generations[number].is_finished:
            ended.add(number)
        while current < len(generations):
            if waiting[current]:
                yield current, waiting[current]
                waiting[current] = []
            if current not in ended:
                break
            current += 1
