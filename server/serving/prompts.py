"""What a client gave to go on from becomes prompts that are ready; knows neither HTTP nor workers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from server.config import ServeConfig
from server.errors import BatchTooLarge, InvalidParameter, UnsupportedParameter
from server.phrases import PhraseMatcher
from server.protocol import Ready, SamplingParams
from server.serving import sampling
from server.serving.classifier import ServedClassifier
from server.serving.generation import Prompt
from server.serving.layers import put_together
from server.serving.options import GenerateOptions
from server.serving.ranking import LabelScorer
from server.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class PromptSource:
    """The fields of a body that say what to go on from."""

    texts: Sequence[str] = ()
    body: Mapping[str, Any] = field(default_factory=dict)
    """All fields beside the parameters, under the client's names, for what they allow the parameters to be."""


class PromptMaker:
    """Checks, tokenises and resolves for one generating model. All that can be refused is refused here."""

    def __init__(
        self,
        config: ServeConfig,
        ready: Ready,
        tokenizer: Tokenizer,
        classifiers: Mapping[str, ServedClassifier],
    ) -> None:
        self._config = config
        self._ready = ready
        self._tokenizer = tokenizer
        self._classifiers = classifiers
        """By name; those of the settings that come after this model are added when it is served already."""

    async def make(self, source: PromptSource, options: GenerateOptions) -> list[Prompt]:
        """One prompt for each text. All share one seed, so that each gives what it would give alone."""
        if not source.texts:
            raise InvalidParameter("inputs", list(source.texts), "must hold at least one text")
        if len(source.texts) > self._config.max_batch_inputs:
            raise BatchTooLarge(len(source.texts), self._config.max_batch_inputs)
        sampling.check(options, self._ready, body=source.body)
        wanted = self._wanted(source, options)
        if wanted.rank_by is not None:
            LabelScorer.find(wanted.rank_by, self._classifiers)
        if wanted.grammar is not None:
            raise UnsupportedParameter("grammar", "leave it out")
        work = _Work(self._ready, self._config.default_max_new_tokens, self._tokenizer, source, options, wanted)
        return await asyncio.to_thread(lambda: [work.prompt(text) for text in source.texts])

    def _wanted(self, source: PromptSource, options: GenerateOptions) -> GenerateOptions:
        """What request, template and model ask for together."""
        return GenerateOptions(**put_together(options, GenerateOptions(), self._ready, source.body).values)


class _Work:
    """What one request's prompts have in common; slow for long texts, so not for the event loop."""

    def __init__(
        self,
        ready: Ready,
        default_max_new_tokens: int,
        tokenizer: Tokenizer,
        source: PromptSource,
        options: GenerateOptions,
        wanted: GenerateOptions,
    ) -> None:
        self._ready = ready
        self._default_max_new_tokens = default_max_new_tokens
        self._tokenizer = tokenizer
        self._source = source
        self._options = options
        self._wanted = wanted
        self._seed = sampling.choose_seed(wanted)
        self._special_stops = _special_stops(tokenizer, wanted.stop or (), ready.vocab_size)

    def prompt(self, text: str) -> Prompt:
        ids = _prompt_ids(self._tokenizer, text, self._wanted.truncate)
        if not ids:
            raise InvalidParameter("inputs", text, "must have at least one token")
        resolved = sampling.resolve(
            self._options,
            self._ready,
            num_prompt_tokens=len(ids),
            default_max_new_tokens=self._default_max_new_tokens,
            seed=self._seed,
            tokenizer=self._tokenizer,
            body=self._source.body,
        )
        params = resolved.params
        params = msgspec.structs.replace(params, stop_token_ids=params.stop_token_ids + self._special_stops)
        banned = params.banned_phrases
        return Prompt(
            text=text,
            ids=ids,
            params=params,
            options=resolved.options,
            parameters=resolved.parameters(),
            banned=PhraseMatcher(banned, fold=True) if banned else None,
            negative_ids=self._negative_ids(params),
        )

    def _negative_ids(self, params: SamplingParams) -> list[int]:
        text = self._wanted.negative_prompt
        if text is None:
            return []
        ids: list[int] = self._tokenizer.encode(text).ids
        room = self._ready.max_model_len - params.max_new_tokens
        if len(ids) > room:
            rule = f"must have at most {room} tokens, for {params.max_new_tokens} new ones follow; it has {len(ids)}"
            raise InvalidParameter("negative_prompt", text, rule)
        return ids


def _special_stops(tokenizer: Tokenizer, stop: Sequence[str], vocab_size: int) -> tuple[int, ...]:
    """Special tokens have no text for a stop string to be found in: ``<|im_end|>`` ends the output as a token."""
    ids = (tokenizer.backend.token_to_id(string) for string in stop)
    return tuple(id_ for id_ in ids if id_ in tokenizer.special_ids and id_ < vocab_size)


def _prompt_ids(tokenizer: Tokenizer, text: str, truncate: int | None) -> list[int]:
    """The text's tokens, with the special tokens that the model's tokenizer puts around a text."""
    encoding = tokenizer.encode(text)
    ids: list[int] = encoding.ids
    if truncate is None or len(ids) <= truncate:
        return ids
    num_leading = next((i for i, special in enumerate(encoding.special_tokens_mask) if not special), 0)
    kept = ids[: min(num_leading, truncate - 1)]
    return kept + ids[len(ids) - (truncate - len(kept)) :]
