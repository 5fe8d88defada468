"""What a client gave to go on from becomes prompts that are ready; knows neither HTTP nor workers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from pydantic_core import to_json

from server.config import ServeConfig
from server.errors import InvalidParameter
from server.length_errors import BatchTooLarge
from server.phrases import PhraseMatcher
from server.protocol import PromptContext, Ready, SamplingParams
from server.sentences import Words
from server.serving import text_threads
from server.serving.options.merge import Merged, check, merge
from server.serving.options.reading import from_mapping
from server.serving.options.resolve import Resolved, check_length, prompt_field, random_seed, resolve
from server.serving.options.table import GenerateOptions
from server.serving.prompt import EndWatch, Prompt
from server.serving.ranking import LabelScorer
from server.serving.services import Services
from server.serving.source_text import ADVICE, AS_TOKENIZED, SourceReader
from server.serving.turns import check_roles, cut_after_last
from server.text.languages import Direction
from server.text.templated import RenderedPrompt, encode_rendered
from server.text.tokenizer import Tokenizer
from server.text.truncation import prompt_ids

MAX_SALT_CHARACTERS = 64


@dataclass(frozen=True, kw_only=True)
class PromptSource:
    """The fields of a body that say what to go on from."""

    texts: Sequence[str | list[int]] | None = None
    """Each is text, or token ids that are taken as they are."""
    max_prompts: int | None = None
    """None: the server's limit of inputs."""
    template: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    examples: Sequence[dict[str, Any]] = ()
    messages: Sequence[dict[str, Any]] | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[dict[str, Any]] = ()
    """What the model may call, for the chat template to describe."""
    cache_salt: str = ""
    written: Collection[str] = ()
    """Special tokens whose text stands in the outputs. Texts that are not special tokens have no effect."""
    writes_special: bool = False
    """The text of every special token does."""
    keeps_stop: bool = False
    """`Prompt.keeps_stop`."""
    add_generation_prompt: bool = True
    """Whether the chat template begins the answer's turn."""
    continues: bool = False
    """The output goes on with the last message, whose turn does not end."""
    end_watch: Callable[[str], EndWatch] | None = None
    """`Prompt.end_watch`."""
    direction: Direction | None = None
    """The languages of an encoder-decoder model's texts; None: those that its tokenizer adds to any text."""
    advice: Words = ADVICE
    """What to do about a text that is too long for an encoder-decoder model."""
    task_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Options that the model sets for the route's task."""
    body: Mapping[str, Any] = field(default_factory=dict)
    """All fields beside the parameters, under the client's names, for what they allow the parameters to be."""

    @property
    def num_prompts(self) -> int:
        return 1 if self.texts is None else len(self.texts)


class PromptMaker:
    """Checks, tokenises and resolves for one generating model. All that can be refused is refused here."""

    def __init__(
        self,
        config: ServeConfig,
        ready: Ready,
        defaults: Mapping[str, Any],
        tokenizer: Tokenizer,
        services: Services,
    ) -> None:
        """``defaults`` are the options that the model's generation_config sets."""
        self._config = config
        self._ready = ready
        self._defaults = defaults
        self._tokenizer = tokenizer
        self._services = services

    async def make(self, source: PromptSource, options: GenerateOptions) -> list[Prompt]:
        """One prompt for each text. All share one seed, so that each gives what it would give alone."""
        if not source.num_prompts:
            raise InvalidParameter("inputs", [], "must contain at least one text")
        limit = source.max_prompts or self._config.max_batch_inputs
        if source.num_prompts > limit:
            raise BatchTooLarge(source.num_prompts, limit)
        if len(source.cache_salt) > MAX_SALT_CHARACTERS:
            raise InvalidParameter(
                "cache_salt", source.cache_salt, f"must have at most {MAX_SALT_CHARACTERS} characters"
            )
        check(options, self._ready, source.body)
        # What a template sets is not known before it is rendered.
        merged = self._merged(source, options, {}) if source.template is None else None
        texts = await self._texts(source)
        if merged is None:
            merged = self._merged(source, options, texts[0].parameters if isinstance(texts[0], RenderedPrompt) else {})
        wanted = GenerateOptions.model_construct(**merged.values)
        if wanted.rank_by is not None:
            LabelScorer.find(wanted.rank_by, self._services.classifiers)
        work = _Work(
            config=self._config,
            ready=self._ready,
            tokenizer=self._tokenizer,
            source=source,
            merged=merged,
            wanted=wanted,
            grammar=None if wanted.grammar is None else await self._services.grammars.text(wanted.grammar),
            topics=self._services.topics.phrases if wanted.penalties else {},
        )
        return await text_threads.each(
            work.prompt, texts, work.num_characters(texts), num_option_characters=work.num_option_characters
        )

    def _merged(self, source: PromptSource, options: GenerateOptions, of_template: Mapping[str, Any]) -> Merged:
        return merge(
            options,
            from_mapping(of_template),
            self._defaults,
            self._ready,
            source.body,
            of_task=source.task_defaults,
            forced_id=source.direction.forced_bos_id if source.direction else None,
        )

    async def _texts(self, source: PromptSource) -> Sequence[str | list[int] | RenderedPrompt]:
        templates = self._services.templates
        if source.template is not None:
            return [await templates.render(source.template, "generate", source.variables, source.examples)]
        if source.messages is not None:
            files = self._ready.tokenizer
            options = source.chat_template_kwargs
            rendered = await templates.render_chat(
                files,
                source.messages,
                options,
                tools=source.tools,
                add_generation_prompt=source.add_generation_prompt and not source.continues,
            )
            check_roles(source.messages, rendered.text)
            return [cut_after_last(source.messages, rendered) if source.continues else rendered]
        return source.texts or []


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What one request's prompts have in common; slow for long texts, so not for the event loop."""

    config: ServeConfig
    ready: Ready
    tokenizer: Tokenizer
    source: PromptSource
    merged: Merged
    wanted: GenerateOptions
    """What request, template and model ask for together."""
    grammar: str | None
    topics: Mapping[str, Sequence[str]]

    @functools.cached_property
    def resolved(self) -> Resolved:
        return resolve(
            self.merged,
            self.ready,
            default_max_new_tokens=self.config.default_max_new_tokens,
            seed=random_seed(),
            tokenizer=self.tokenizer.target,
            topics=self.topics,
            grammar=self.grammar,
            source=prompt_field(self.source.body),
        )

    @functools.cached_property
    def banned(self) -> PhraseMatcher | None:
        phrases = self.resolved.chosen["banned_phrases"]
        return PhraseMatcher(phrases, fold=True) if phrases else None

    def num_characters(self, sources: Sequence[str | list[int] | RenderedPrompt]) -> int:
        """Of all that is to be read. A token id counts as one."""
        texts = [source.text if isinstance(source, RenderedPrompt) else source for source in sources]
        return sum(map(len, texts)) + len(self.wanted.negative_prompt or "")

    @property
    def num_option_characters(self) -> int:
        """Roughly, as JSON; topics count with their phrases."""
        return len(to_json([list(self.merged.values.values()), self.topics, self.grammar]))

    def prompt(self, source: str | list[int] | RenderedPrompt) -> Prompt:
        reader = self.source_reader
        if reader is None:
            text, ids, template_spans = self._tokenized(source)
            source_ids = []
        else:
            text, ids, template_spans = "", reader.start_ids, []
            source_ids = reader.ids(self._plain(source), self.wanted.truncate)
        if not (ids if reader is None else source_ids):
            raise InvalidParameter("inputs", text, "must have at least one token")
        params = self.resolved.params(len(ids))
        with_stops = self._with_special_stops(params)
        return Prompt(
            text=text,
            ids=ids,
            params=with_stops,
            options=self.wanted,
            parameters=self.resolved.parameters(params),
            banned=self.banned,
            template=_template_name(source),
            context=PromptContext(
                negative_prompt_ids=self._negative_ids(params),
                template_spans=template_spans if self.wanted.penalize_template is False else [],
                cache_salt=self.source.cache_salt,
                source_ids=source_ids,
            ),
            written_ids=self._written_ids(),
            keeps_stop=self.source.keeps_stop,
            end_watch=self.source.end_watch,
        )

    @functools.cached_property
    def source_reader(self) -> SourceReader | None:
        """Of an encoder-decoder model."""
        if not self.ready.max_source_len:
            return None
        return SourceReader(
            tokenizer=self.tokenizer,
            ready=self.ready,
            direction=self.source.direction or AS_TOKENIZED,
            advice=self.source.advice,
        )

    def _plain(self, source: str | list[int] | RenderedPrompt) -> str | list[int]:
        if isinstance(source, RenderedPrompt):
            return source.text
        return self._checked(source, self.ready.source_vocab_size) if isinstance(source, list) else source

    def _tokenized(self, source: str | list[int] | RenderedPrompt) -> tuple[str, list[int], list[tuple[int, int]]]:
        """The text that the model reads, its tokens, and the ranges of these that a template wrote."""
        limit = self.wanted.truncate
        if limit is None and not isinstance(source, list):
            self._check_least(source if isinstance(source, str) else source.text)
        if isinstance(source, str):
            ids, is_cut = prompt_ids(self.tokenizer, source, limit)
            return self.tokenizer.decode(ids) if is_cut else source, ids, []
        if isinstance(source, list):
            ids = self._checked(source, self.ready.vocab_size)[-limit if limit is not None else 0 :]
            return self.tokenizer.decode(ids), ids, []
        tokens = encode_rendered(self.tokenizer, source, self.ready.max_model_len - 1 if limit is None else None)
        if limit is None or len(tokens.ids) <= limit:
            return source.text, tokens.ids, tokens.template_spans
        tokens = tokens.truncated(limit)
        return self.tokenizer.decode(tokens.ids), tokens.ids, tokens.template_spans

    def _check_least(self, text: str) -> None:
        """Raise for a text that is certainly too long, before it is read: reading takes much memory and time."""
        num_tokens = self.tokenizer.at_least(text, self.ready.max_model_len)
        check_length(num_tokens, self.ready, prompt_field(self.source.body), is_least=True)

    def _checked(self, ids: list[int], vocab_size: int) -> list[int]:
        for id_ in ids:
            if not 0 <= id_ < vocab_size:
                raise InvalidParameter("inputs", id_, f"must be a token id, 0 to {vocab_size - 1}")
        return ids

    def _with_special_stops(self, params: SamplingParams) -> SamplingParams:
        """Special tokens have no text for a stop string to be found in: ``<|im_end|>`` ends the output as a token."""
        stops = tuple(sorted(self._special_ids(self.wanted.stop or ())))
        return msgspec.structs.replace(params, stop_token_ids=params.stop_token_ids + stops) if stops else params

    def _written_ids(self) -> frozenset[int]:
        if self.source.writes_special:
            return frozenset(self.tokenizer.target.special_ids)
        return self._special_ids(self.source.written)

    def _special_ids(self, texts: Collection[str]) -> frozenset[int]:
        """Ids of the special tokens among the texts."""
        target = self.tokenizer.target
        ids = (target.backend.token_to_id(text) for text in texts)
        return frozenset(id_ for id_ in ids if id_ in target.special_ids and id_ < self.ready.vocab_size)

    def _negative_ids(self, params: SamplingParams) -> list[int]:
        text = self.wanted.negative_prompt
        if text is None:
            return []
        ids: list[int] = self.tokenizer.encode(text).ids
        room = self.ready.max_model_len - params.max_new_tokens
        if len(ids) > room:
            rule = f"must have at most {room} tokens, for {params.max_new_tokens} new ones follow; it has {len(ids)}"
            raise InvalidParameter("negative_prompt", text, rule)
        return ids


def _template_name(source: str | list[int] | RenderedPrompt) -> str | None:
    if not isinstance(source, RenderedPrompt) or source.name is None:
        return None
    return f"{source.name}@{source.version}"
