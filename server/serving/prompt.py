"""A prompt that is ready to be generated from; knows neither HTTP nor workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from server.phrases import PhraseMatcher
from server.protocol import PromptContext, SamplingParams
from server.serving.options.table import GenerateOptions

EndWatch = Callable[[str], bool]
"""Given an output's text as it grows: whether the output ends with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One text, ready to be generated from."""

    text: str
    ids: list[int]
    params: SamplingParams
    options: GenerateOptions = field(default_factory=GenerateOptions)
    """What was asked for, by request, template and model together."""
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Every option that has an effect: its ``value`` and ``origin``."""
    banned: PhraseMatcher | None = None
    """Of ``params.banned_phrases``; one for all outputs."""
    template: str | None = None
    """Name and version of the template that wrote the prompt."""
    context: PromptContext = field(default_factory=PromptContext)
    written_ids: frozenset[int] = frozenset()
    """Special tokens whose text stands in the outputs."""
    keeps_stop: bool = False
    """The text ends with the stop string or stop token that ended it."""
    end_watch: Callable[[str], EndWatch] | None = None
    """Makes one for an output, given the prompt's text."""

    @property
    def input_ids(self) -> list[int]:
        """The tokens that the client's input became: those that the encoder reads, of an encoder-decoder model."""
        return self.context.source_ids or self.ids

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end an output, which is cut before them."""
        return self.options.stop or ()

    @property
    def num_answers(self) -> int:
        """Of ``params.num_return_sequences`` outputs, so many are the answer."""
        return self.options.num_return_sequences or 1

    @property
    def is_ranked(self) -> bool:
        """Whether the outputs are samples of which the best are the answer."""
        return (self.options.best_of or 1) > 1

    @property
    def num_rows(self) -> int:
        """Sequences that compute at once at most, without those of the negative prompt."""
        return max(self.params.num_beams, self.params.num_return_sequences)

    @property
    def cost(self) -> int:
        """Most tokens of work that it can become."""
        new_tokens = self.num_rows * self.params.max_new_tokens
        read_tokens = len(self.context.source_ids) + len(self.ids)
        if self.params.guidance_scale != 1.0:
            return read_tokens + max(len(self.context.negative_prompt_ids), 1) + 2 * new_tokens
        return read_tokens + new_tokens
