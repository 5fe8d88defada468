"""One request in the engine: its outputs, and the rows that compute them. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from server.engine.beams import BeamSearch
from server.engine.context import Context
from server.engine.grammar import Grammar
from server.engine.phrases import PhraseMatcher
from server.engine.preamble import FittedAdapter
from server.engine.sequence import Sequence
from server.protocol import Generate, Output, PromptLogprobs, SamplingParams
from server.vocabulary import Vocabulary


class SequenceGroup:
    """What the scheduler admits, preempts and finishes whole.

    A request begins with one sequence, its root. Several samples and beams fork from it when the prompt is computed.
    After a preemption, and when several outputs are resumed, the tokens that all begin with (the *trunk*) are
    computed once, by the first row; until then the group's other rows hold nothing.
    """

    def __init__(
        self,
        command: Generate,
        *,
        max_model_len: int,
        block_size: int,
        order: int = 0,
        vocabulary: Vocabulary | None = None,
        grammar: Grammar | None = None,
        adapter: FittedAdapter | None = None,
    ) -> None:
        params = command.params
        self.request_id = command.request_id
        self.caller = command.caller
        self.params = params
        self.order = order
        """Place in the order of arrival."""
        self.has_shadows = params.guidance_scale != 1.0
        self.is_joint = self.has_shadows or params.num_beams > 1
        """Whether all rows compute their last token in the same step, for one choice is made of them all."""
        indices = [i for i, output in enumerate(command.outputs) if not output.is_finished] or [0]
        self.has_forked = params.num_beams > 1 or params.num_return_sequences == 1 or _has_begun(command.outputs)
        """False while the root stands for several samples."""
        context = Context.of(command, adapter)
        self.source = context.source
        """What the encoder reads, for all rows."""
        make = partial(
            _sequence,
            command,
            max_model_len=max_model_len,
            block_size=block_size,
            context=context,
            vocabulary=vocabulary,
            matcher=_matcher(params),
            grammar=grammar,
        )
        self.sequences = [make(sample_index=index) for index in (indices if self.has_forked else [0])]
        """Outputs that are not finished, in order."""
        root = self.sequences[0]
        self.num_prompt_tokens, self.num_virtual = root.num_prompt_tokens, root.num_virtual
        self.search = None if params.num_beams == 1 else _search(params, self.sequences[0], vocabulary)
        """Of beams only."""
        self.num_agreed = 0
        """Output tokens of beams that were sent."""
        # They were sent with the first tokens of the first output.
        self.wants_prompt_logprobs = params.prompt_logprobs and not _has_begun(command.outputs[:1])
        """Until they are computed."""
        self.prompt_logprobs: PromptLogprobs | None = None
        """Computed, or as far as they are, and not yet sent."""
        self.num_cached_tokens: int | None = None
        """Prompt tokens found in the prefix cache at first admission; None before."""
        self.has_replied = False
        self.rows: list[Sequence] = []
        """The sequences and shadows that hold blocks, sequences first."""
        self._shared: Callable[[Sequence, int], int] = _all
        self.trunk: int | None = None
        """Tokens of prompt and output that the first row computes before the others fork from it; None if none do."""
        self.drops_leader = False
        """Whether the first output is not wanted, once the others have forked from it."""
        for sequence in self.sequences:
            sequence.reuses_prefix = not self.wants_prompt_logprobs

    @property
    def num_input_tokens(self) -> int:
        """Tokens that the client gave: of the prompt, and of the source."""
        return self.num_prompt_tokens - self.num_virtual + (0 if self.source is None else len(self.source.ids))

    @property
    def is_simple(self) -> bool:
        """Whether each row's last logits choose its own next token, and nothing else."""
        return self.has_forked and not self.is_joint and not self.wants_prompt_logprobs

    @property
    def can_repeat_step(self) -> bool:
        """Whether a step that failed while tokens were chosen has left no trace here."""
        return self.search is None or not self.search.is_within_step

    @property
    def has_begun(self) -> bool:
        """Whether any output has a token."""
        if self.search is not None:
            return self.search.num_new_tokens > 0
        return any(sequence.num_output_tokens for sequence in self.sequences)

    @property
    def num_rows(self) -> int:
        """Rows that the group may come to: what it takes of ``max_running``."""
        num_outputs = len(self.sequences)
        if self.params.num_beams > 1:
            num_outputs = self.params.num_beams
        elif not self.has_forked:
            num_outputs = self.params.num_return_sequences
        return num_outputs * (2 if self.has_shadows else 1)

    @property
    def all_rows(self) -> list[Sequence]:
        """Sequences, then their shadows, whether they hold blocks or not."""
        return self.sequences + self._shadows

    @property
    def _shadows(self) -> list[Sequence]:
        return [sequence.shadow for sequence in self.sequences if sequence.shadow is not None]

    @property
    def leaders(self) -> list[Sequence]:
        """The row, or the row and its shadow, that compute the trunk."""
        return self.sequences[0].rows

    def trunk_of(self, row: Sequence) -> int:
        """The trunk in tokens of ``row``, whose prompt may be the negative one."""
        assert self.trunk is not None
        return self._shared(row, self.trunk - self.num_prompt_tokens + row.num_prompt_tokens)

    def num_due_tokens(self, row: Sequence) -> int:
        """Tokens that the row has to compute now."""
        return row.num_new_tokens if self.trunk is None else self.trunk_of(row) - row.num_computed_tokens

    @property
    def num_due(self) -> int:
        """Tokens that all rows have to compute now, and what is left of the source."""
        return self.num_source_left + sum(max(self.num_due_tokens(row), 0) for row in self.rows)

    @property
    def num_source_left(self) -> int:
        """What the encoder still has to read, in tokens that cost as much."""
        return 0 if self.source is None else self.source.num_left

    def num_later_blocks(self, block_size: int) -> int:
        """Blocks that the rows will take when they fork from the trunk."""
        if self.trunk is None:
            return 0
        rows = [row for sequence in self.sequences[1:] for row in sequence.rows]
        return sum(-(-row.num_tokens // block_size) - self.trunk_of(row) // block_size for row in rows)

    def begin(self, shared: Callable[[Sequence, int], int]) -> None:
        """The group is admitted: its leaders compute, the others follow when the trunk is computed.

        ``shared`` says how much of a beginning that rows have in common is computed once. Rows whose lengths decide
        different rotary factors have nothing in common.
        """
        self._shared = shared
        if any(len({row.deciding_length for row in rows}) > 1 for rows in (self.sequences, self._shadows)):
            self.spread()
            return
        self.rows = self.leaders
        self.trunk = None if len(self.sequences) == 1 else common_length(self.sequences)

    def spread(self) -> None:
        """All rows compute."""
        self.rows = self.all_rows
        self.trunk = None

    def leave(self) -> None:
        """No row computes any more."""
        self.rows = []
        self.trunk = None

    def remove(self, sequence: Sequence) -> list[Sequence]:
        """An output is complete, or not wanted any more. Returns its rows."""
        self.sequences.remove(sequence)
        gone = sequence.rows
        self.rows = [row for row in self.rows if row not in gone]
        return gone

    def sample(self, index: int) -> Sequence | None:
        """The sample with this number, if it runs by itself."""
        if not self.has_forked or self.search is not None:
            return None
        return next((sequence for sequence in self.sequences if sequence.sample_index == index), None)


def _all(_row: Sequence, num_tokens: int) -> int:
    return num_tokens


def common_length(sequences: list[Sequence]) -> int:
    """Tokens that all begin with, leaving each at least one of its own to compute."""
    first = sequences[0].token_ids
    length = min(sequence.num_tokens for sequence in sequences) - 1
    for sequence in sequences[1:]:
        differs = first[:length] != sequence.token_ids[:length]
        if differs.any():
            length = int(np.argmax(differs))
    return length


def _has_begun(outputs: list[Output]) -> bool:
    return any(output.token_ids or output.is_finished for output in outputs)


def _search(params: SamplingParams, root: Sequence, vocabulary: Vocabulary | None) -> BeamSearch:
    return BeamSearch(
        params,
        ending_ids=root.stopping.ending_ids,
        max_tokens=root.stopping.max_tokens,
        num_prompt_tokens=root.num_prompt_tokens,
        vocabulary=vocabulary,
    )


def _matcher(params: SamplingParams) -> PhraseMatcher | None:
    """Of banned phrases, for all samples; beams leave a phrase out before it is chosen."""
    if not params.banned_phrases or params.num_beams > 1:
        return None
    return PhraseMatcher(params.banned_phrases, fold=True)


def _sequence(command: Generate, *, max_model_len: int, block_size: int, context: Context, **options: Any) -> Sequence:
    """One output, with its shadow if the request is guided."""
    if command.params.guidance_scale == 1.0:
        return Sequence(
            command,
            max_model_len=max_model_len,
            block_size=block_size,
            context=context,
            **options,
        )
    negative_ids = command.negative_prompt_ids or command.prompt_ids[-1:]
    num_more = len(negative_ids) - len(command.prompt_ids)
    sequence = Sequence(
        command,
        # Both must stay within the model's length, to the last token.
        max_model_len=max_model_len - max(0, num_more),
        block_size=block_size,
        context=context,
        **options,
    )
    params = SamplingParams(max_new_tokens=sequence.stopping.max_tokens - sequence.num_prompt_tokens)
    output = Output(sequence.output_ids)
    sequence.shadow = Sequence(
        Generate(command.request_id, negative_ids, params, [output], tenant=command.tenant),
        max_model_len=max_model_len,
        block_size=block_size,
        context=context,
    )
    return sequence
