"""The engine's state of one row: tokens so far, blocks, counts, and what is told of its tokens. Decides nothing."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import numpy as np

from server.engine.batch_inputs import IntArray
from server.engine.context import NO_CONTEXT, Context
from server.engine.grammar import Grammar
from server.engine.phrases import PhraseMatcher, PhraseWatch
from server.engine.processors import order as processors_order
from server.engine.processors.base import LogitsProcessor, Start
from server.engine.stopping import Stopping
from server.protocol import FinishReason, Generate, Output, TokenLogprob
from server.vocabulary import Vocabulary

if TYPE_CHECKING:
    from server.engine.prompt_lookup import Guesses

SPARE_TOKENS = 64


class Sequence:
    """One output of a request from its first token to its last: a row of the batch.

    `BlockManager` alone changes the block table, the hashes and ``deciding_length``, `Scheduler` alone ``key`` and
    ``num_computed_tokens``.
    """

    __slots__ = (
        "banned_at",
        "block_hashes",
        "block_table",
        "command",
        "context",
        "deciding_length",
        "grammar",
        "guesses",
        "is_ended",
        "key",
        "logprobs",
        "matcher",
        "num_blocks",
        "num_computed_tokens",
        "num_prompt_tokens",
        "num_published_blocks",
        "num_rewinds",
        "num_sent",
        "num_tokens",
        "num_virtual",
        "params",
        "processors",
        "request_id",
        "reuses_prefix",
        "rewinds_before",
        "sample_index",
        "shadow",
        "stopping",
        "tells_logprobs",
        "tells_others",
        "tenant",
        "token_ids",
        "top_logprobs",
        "vocabulary",
        "watch",
    )

    def __init__(
        self,
        command: Generate,
        *,
        max_model_len: int,
        block_size: int,
        sample_index: int = 0,
        context: Context = NO_CONTEXT,
        vocabulary: Vocabulary | None = None,
        matcher: PhraseMatcher | None = None,
        grammar: Grammar | None = None,
    ) -> None:
        output = command.outputs[sample_index] if command.outputs else Output()
        self.command = command
        self.context = context
        self.request_id = command.request_id
        self.params = command.params
        self.tells_logprobs, self.tells_others = self.params.tells_logprobs, self.params.tells_others
        self.sample_index = sample_index
        """Which of the request's samples this is; part of the random number's key."""
        self.vocabulary = vocabulary
        self.matcher = matcher
        """Of banned phrases."""
        self.grammar = grammar
        """Of ``params.grammar``."""
        self.num_virtual = context.num_virtual
        """Tokens before the client's, which its adapter brings. Counted as tokens of the prompt."""
        self.num_prompt_tokens = self.num_virtual + len(command.prompt_ids)
        self.num_tokens = self.num_prompt_tokens + len(output.token_ids)
        """Known tokens: prompt and output."""
        self.stopping = Stopping(command.params, self.num_prompt_tokens, max_model_len)
        capacity = max(self.stopping.max_tokens, self.num_tokens)
        self.token_ids: IntArray = np.zeros(min(capacity, self.num_tokens + SPARE_TOKENS), dtype=np.int64)
        """With room to grow: a long output that waits, or never comes, takes no memory."""
        if context.preamble is not None:
            self.token_ids[: self.num_virtual] = context.preamble.ids
        self.token_ids[self.num_virtual : self.num_prompt_tokens] = command.prompt_ids
        self.token_ids[self.num_prompt_tokens : self.num_tokens] = output.token_ids
        self.shadow: Sequence | None = None
        """For guidance: the same output after the negative prompt."""

        self.num_sent = len(output.token_ids)
        """Output tokens that were sent; those after it are held."""
        self.logprobs = [math.nan] * self.num_sent
        """Of the output tokens, where asked for; not known of what another worker sent."""
        self.top_logprobs: list[list[TokenLogprob]] = [[] for _ in range(self.num_sent)]
        self.num_rewinds = output.num_rewinds
        self.rewinds_before = [output.num_rewinds] * self.num_sent
        """With banned phrases: ``num_rewinds`` when each output token was taken."""
        self.banned_at: dict[int, set[int]] = {}
        """By number of new tokens before the place: what may not be chosen there, for a banned phrase began with it."""
        self.is_ended = False
        """Whether a processor allows no further token."""

        self.num_computed_tokens = 0
        self.block_table: IntArray = np.zeros(-(-capacity // block_size), dtype=np.int64)
        """Room for the longest output; the first ``num_blocks`` are in use."""
        self.num_blocks = 0
        self.block_hashes: list[bytes] = []
        """Of the leading full blocks of known tokens, as far as they were needed; outlives a preemption."""
        self.num_published_blocks = 0
        """Leading blocks that the prefix cache knows or was offered."""
        self.tenant = command.tenant
        self.deciding_length = 0
        """The length that decides its rotary factors, as of the tokens that are computed; see `LengthRule`."""
        self.reuses_prefix = True
        """False where the logits of the prompt are wanted, which a block of the cache would not give."""
        self.key: int | None = None
        """Given with the first blocks, taken with the last."""

        self.guesses: Guesses | None = None
        """With prompt lookup: what its guesses for this sequence were worth."""
        self.processors: tuple[LogitsProcessor, ...] = ()
        self.watch: PhraseWatch | None = None
        self._make_rules()

    @property
    def rows(self) -> list[Sequence]:
        """What computes it: itself, and its shadow."""
        return [self] if self.shadow is None else [self, self.shadow]

    @property
    def num_output_tokens(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    @property
    def num_new_tokens(self) -> int:
        """Known tokens that are not computed yet."""
        return self.num_tokens - self.num_computed_tokens

    @property
    def is_in_prompt(self) -> bool:
        """Whether tokens of the prompt are not computed yet."""
        return self.num_computed_tokens < self.num_prompt_tokens

    @property
    def output_ids(self) -> list[int]:
        ids: list[int] = self.token_ids[self.num_prompt_tokens : self.num_tokens].tolist()
        return ids

    @property
    def is_cut_by_bans(self) -> bool:
        """Whether there were tokens to go on with here, all of which began banned phrases, where none is left now."""
        has_problem = any(processor.problem is not None for processor in self.processors)
        return not has_problem and bool(self.banned_at.get(self.num_output_tokens))

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why no token follows the last one, if so."""
        if self.num_tokens == self.num_prompt_tokens:
            return None
        return self.finish_reason_after(int(self.token_ids[self.num_tokens - 1]))

    def finish_reason_after(self, last_id: int) -> FinishReason | None:
        """`finish_reason`, where the last token is at hand."""
        return "stop" if self.is_ended else self.stopping.finish_reason(last_id, self.num_tokens)

    def append(self, token_id: int) -> None:
        """Take a chosen token into the output."""
        if self.num_tokens == len(self.token_ids):
            self.token_ids = np.concatenate([self.token_ids, np.zeros_like(self.token_ids)])
        self.token_ids[self.num_tokens] = token_id
        self.num_tokens += 1
        if self.shadow is not None:
            self.shadow.append(token_id)
        if self.processors:
            self._tell_processors(token_id)

    def after(self, draft_ids: IntArray) -> list[Sequence]:
        """The sequence as it would be after each of the tokens, for choosing the next one and for nothing else."""
        places = [self]
        for token_id in draft_ids.tolist():
            place = copy.copy(places[-1])
            place.num_tokens += 1
            if place.processors:
                place.processors = processors_order.fork(place.processors)
                place._tell_processors(token_id)
            places.append(place)
        return places[1:]

    def fork(self) -> Sequence:
        """The same output so far, holding no blocks; afterwards neither changes the other."""
        child = copy.copy(self)
        child.token_ids = self.token_ids.copy()
        child.block_table = self.block_table.copy()
        child.block_hashes = self.block_hashes.copy()
        child.logprobs = self.logprobs.copy()
        child.top_logprobs = self.top_logprobs.copy()
        child.rewinds_before = self.rewinds_before.copy()
        child.banned_at = {place: ids.copy() for place, ids in self.banned_at.items()}
        child.processors = processors_order.fork(self.processors)
        child.watch = None if self.watch is None else self.watch.fork()
        child.shadow = None if self.shadow is None else self.shadow.fork()
        child.num_blocks = child.num_published_blocks = child.num_computed_tokens = 0
        child.key = None
        child.guesses = None
        return child

    def truncate(self, num_output_tokens: int) -> None:
        """Go back to the first so many output tokens, as if the others had never been chosen."""
        self.num_tokens = self.num_prompt_tokens + num_output_tokens
        for told in (self.logprobs, self.top_logprobs, self.rewinds_before):
            del told[num_output_tokens:]
        # What was banned later was banned after other tokens than will come now.
        self.banned_at = {place: ids for place, ids in self.banned_at.items() if place <= num_output_tokens}
        self._make_rules()
        if self.shadow is not None:
            self.shadow.truncate(num_output_tokens)

    def _tell_processors(self, token_id: int) -> None:
        for processor in self.processors:
            processor.accept(token_id)
        self.is_ended = any(processor.ends_sequence for processor in self.processors)
        self.processors = tuple(processor for processor in self.processors if not processor.is_spent)

    def _make_rules(self) -> None:
        """Processors and the watch for phrases, in the state after the output so far."""
        self.processors = processors_order.for_sequence(
            Start(
                params=self.params,
                prompt_ids=self.token_ids[self.num_virtual : self.num_prompt_tokens],
                output_ids=self.token_ids[self.num_prompt_tokens : self.num_tokens],
                ending_ids=self.stopping.ending_ids,
                max_tokens=self.stopping.max_tokens - self.num_virtual,
                vocabulary=self.vocabulary,
                context=self.command,
                banned_at=self.banned_at,
                grammar=self.grammar,
            )
        )
        self.is_ended = any(processor.ends_sequence for processor in self.processors)
        if self.matcher is not None:
            self.watch = _watch(self.matcher, self.vocabulary, self.output_ids)


def _watch(matcher: PhraseMatcher, vocabulary: Vocabulary | None, output_ids: list[int]) -> PhraseWatch:
    assert vocabulary is not None
    watch = PhraseWatch(matcher, vocabulary)
    for token_id in output_ids:
        watch.push(token_id)
    return watch
