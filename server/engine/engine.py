"""The decoder engine: commands in, one step at a time, replies out. Token ids only; knows neither text nor sockets.

One step: the scheduler chooses the work, the runner computes it, the chooser picks tokens, the rules of `stopping`
end sequences, banned phrases send them back.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch

from server.adapter_table import AdapterTable
from server.engine import checks, replies
from server.engine.accepting import Acceptor
from server.engine.adapter_queue import AdapterQueue
from server.engine.adapter_trial import num_blocks, try_step
from server.engine.batch import Batch, Share
from server.engine.batch_inputs import Row
from server.engine.beams import BeamStep
from server.engine.block_manager import BlockManager
from server.engine.choosing import Chooser
from server.engine.chunking import FixedChunks, FreeChunks
from server.engine.deadlines import Deadlines
from server.engine.grammar import Grammar, GrammarCompiler
from server.engine.grammar_queue import GrammarQueue
from server.engine.model_runner import ModelRunner
from server.engine.pacing import Pacing
from server.engine.preamble import FittedAdapter
from server.engine.processors.grammar import GrammarMask
from server.engine.prompt_lookup import Drafter
from server.engine.relief import Relief
from server.engine.scheduler import Scheduler
from server.engine.sequence_group import SequenceGroup
from server.errors import DeadlineExceeded, InsufficientMemory, SluiceError
from server.out_of_memory import is_memory_error
from server.protocol import Encode, Failed, Generate, LoadAdapter, Reply, Stats, Tokens, UnloadAdapter
from server.token_budget import TokenBudget
from server.vocabulary import Vocabulary

FIXED_CHUNK_TOKENS = 128
"""Prompts are cut about here where cuts may not depend on the batch."""


DEFAULT_MAX_BATCH_TOKENS = 2048
"""Where the settings name no limit. On a CPU a budget below it is learned."""

PROMPT_STEP_S = 0.5
"""About the longest step with nothing but prompts: a short request that comes meanwhile waits for it."""


def default_max_batch_tokens(max_running: int) -> int:
    """The most new tokens of a step where the settings name no limit."""
    return max(DEFAULT_MAX_BATCH_TOKENS, max_running)


def default_token_budget(device: torch.device, max_running: int) -> TokenBudget | None:
    """What a step may compute of prompts where the settings name no limit; None is all that `max_batch_tokens` allows.

    On a GPU the fixed part of a step is so large a share that the limit itself is what would be learned.
    """
    if device.type != "cpu":
        return None
    return TokenBudget(first=128, usual=512, most=default_max_batch_tokens(max_running), step_s=PROMPT_STEP_S)


class DecoderEngine:
    """Continuous batching of sequences over one `ModelRunner`."""

    def __init__(
        self,
        runner: ModelRunner,
        *,
        max_model_len: int,
        max_batch_tokens: int,
        max_running: int,
        prefix_cache: bool,
        vocabulary: Vocabulary | None = None,
        deterministic: bool = False,
        pacing: Pacing | None = None,
        drafter: Drafter | None = None,
        deadlines: Deadlines | None = None,
        token_budget: TokenBudget | None = None,
        max_source_len: int = 0,
        adapters: AdapterTable[FittedAdapter] | None = None,
    ) -> None:
        """``deterministic`` cuts prompts at fixed places, unless the runner's rows are the same however they are cut.

        ``pacing`` learns from the engine's steps, and bounds what they compute of prompts where cuts may be free.
        ``token_budget`` learns from them too, and bounds what a step computes of prompts wherever they are cut.
        ``drafter`` lets rows guess their next tokens where the runner can go back from wrong ones.
        ``max_source_len`` is 0 for models without an encoder. ``adapters`` are those that requests may name.
        """
        self._runner = runner
        self._max_model_len = max_model_len
        self._max_source_len = max_source_len
        self._adapters = adapters or AdapterTable[FittedAdapter]()
        self._absent = AdapterQueue(self._adapters)
        self._vocabulary = vocabulary
        self._pacing = pacing
        self._token_budget = token_budget
        has_fixed_cuts = deterministic and not runner.is_row_invariant
        # A runner that shares no blocks cannot go back; where cuts count, a draft changes log-probabilities.
        self._drafter = drafter if runner.can_reuse_blocks and not has_fixed_cuts else None
        blocks_per_chunk = -(-FIXED_CHUNK_TOKENS // runner.block_size)
        self.blocks = BlockManager(
            runner.num_blocks,
            runner.block_size,
            prefix_cache=prefix_cache and runner.can_reuse_blocks,
            reuse_multiple=blocks_per_chunk if has_fixed_cuts else 1,
            keeps_sources=prefix_cache,
        )
        self.scheduler = Scheduler(
            self.blocks,
            runner,
            max_batch_tokens=max_batch_tokens,
            max_running=max_running,
            chunking=FixedChunks(blocks_per_chunk * runner.block_size) if has_fixed_cuts else FreeChunks(),
            pacing=None if has_fixed_cuts else pacing,
            drafter=self._drafter,
            rule=runner.length_rule,
            token_budget=token_budget,
            passes=runner.encoder_passes,
        )
        self._relief = Relief(self.scheduler, runner)
        self._max_rows = min(max_running, max_batch_tokens)
        self._chooser = Chooser(self.scheduler)
        self._acceptor = Acceptor(self.scheduler, self._drafter)
        self._uncompiled = (
            None if vocabulary is None else GrammarQueue(GrammarCompiler(vocabulary, vocab_size=runner.vocab_size))
        )
        self._deadlines = deadlines or Deadlines()
        self._replies: list[Reply] = []
        """Answers that need no step, sent with the next one."""
        self._num_arrivals = 0

    @property
    def has_work(self) -> bool:
        return bool(self._has_requests or self._uncompiled or self._absent or self._adapters.has_work)

    @property
    def _has_requests(self) -> bool:
        """Those that wait for nothing but a step, or an answer."""
        return bool(self._replies or self.scheduler.num_running or self.scheduler.num_waiting)

    def add(self, command: Generate | Encode) -> None:
        """Queue a request. What cannot be served is answered `Failed` in the next step."""
        if not isinstance(command, Generate):
            self._fail(command.request_id, SluiceError.code, "This model generates text and does not encode it.")
        elif command.request_id in self.scheduler or self._is_waiting_outside(command.request_id):
            self._fail(command.request_id, SluiceError.code, "A request with this id is already running.")
        elif problem := self._problem(command):
            self._fail(command.request_id, SluiceError.code, problem)
        else:
            if command.deadline_s is not None:
                self._deadlines.add(command.request_id, command.deadline_s)
            if command.params.grammar is not None and self._uncompiled is not None:
                self._uncompiled.add(command)
            else:
                self._queue(command)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Forget a request, or one of its samples, and free its blocks at once."""
        if index is not None:
            self.scheduler.abort_sample(request_id, index)
            return
        self._replies = [reply for reply in self._replies if getattr(reply, "request_id", None) != request_id]
        self._forget(request_id)

    def change_adapters(self, command: LoadAdapter | UnloadAdapter) -> None:
        """Know another adapter, or forget one, which those that have it keep. Later steps answer."""
        if isinstance(command, LoadAdapter):
            self._adapters.add(command)
        else:
            self._adapters.drop(command.digest)

    @torch.inference_mode()
    def step(self) -> list[Reply]:
        """Compute one batch. The last reply is `Stats`."""
        start = perf_counter()
        if self._uncompiled:
            self._take_compiled(self._uncompiled)
        if self._absent or self._adapters.has_work:
            self._follow_adapters()
        for request_id in self._deadlines.due():
            self._end_in_time(request_id)
        answers, self._replies = self._replies, []
        answers += self._adapters.take_states()
        batch = self.scheduler.schedule()
        num_prompt_tokens = batch.num_prompt_tokens
        forward_s = self._compute(batch, answers) if batch.has_work else None
        step_s = perf_counter() - start
        if forward_s is not None:
            self._learn(batch, step_s)
            self._relief.after_success()
        elif not batch.has_work:
            self._relief.widen()
        self._release_sources()
        answers.append(
            Stats(
                num_running=self.scheduler.num_running,
                num_waiting=self.scheduler.num_waiting + len(self._uncompiled or ()) + len(self._absent),
                num_blocks_used=self.blocks.num_used,
                batch_size=batch.num_rows,
                batch_tokens=batch.num_tokens,
                prompt_tokens=num_prompt_tokens,
                prefix_hit_tokens=sum(group.num_cached_tokens or 0 for group in batch.started),
                prefix_query_tokens=sum(group.num_input_tokens for group in batch.started),
                num_preemptions=batch.num_preemptions,
                num_drafted=batch.num_drafted,
                num_accepted=batch.num_accepted,
                token_budget=0 if self._token_budget is None else self._token_budget.num_tokens,
                step_s=step_s,
                forward_s=forward_s or 0.0,
                started=[group.request_id for group in batch.started],
            )
        )
        return answers

    def check(self) -> None:
        """Raise if an invariant of blocks or queues fails. For tests."""
        self.scheduler.check()

    def _compute(self, batch: Batch, answers: list[Reply]) -> float | None:
        """Run the batch, choose tokens and answer. Returns the seconds of the forward pass; None if memory ran out."""
        rows = [_row(share) for share in batch.shares]
        start = perf_counter()
        if grammars := [p for share in batch.shares if share.sequence.grammar for p in share.sequence.processors]:
            GrammarMask.prepare(grammars)
        copies = self.blocks.take_copies()
        self._release_sources()
        choices = None
        is_computed = False
        try:
            if copies:
                self._runner.copy_blocks(copies)
            if batch.parts:
                self._runner.encode(batch.parts)
                self.scheduler.sources.computed(batch)
            if not rows:
                return perf_counter() - start
            logits_RV = self._runner.forward(rows)
            forward_s = perf_counter() - start
            self.scheduler.computed(batch)
            is_computed = True
            choices = self._chooser.choose(logits_RV, batch, self._runner.failed_rows)
        except (MemoryError, RuntimeError) as error:
            if not is_memory_error(error) or not all(share.group.can_repeat_step for share in batch.shares):
                raise
        if choices is None:
            # Outside of the handler, whose error holds on to the step's tensors.
            if not is_computed:
                self.blocks.ask_again(copies)
            for key in self.scheduler.sources.restart(batch):
                self._runner.release_source(key)
            answers += self._relief.after_failure(batch, is_computed=is_computed)
            return None
        for group, code, message in choices.failed:
            # With everything it left in the cache.
            if blocks := self.scheduler.discard(group):
                self._runner.clear_blocks(blocks)
            answers.append(Failed(group.request_id, code, message))
        # Only now: what a failed sequence computed must not become a prefix of others.
        self.blocks.publish_all([share.sequence for share in batch.shares])
        answers += self._acceptor.accept(choices, batch)
        for group, step in choices.beams:
            answers += self._go_on(group, step)
        return forward_s

    def _release_sources(self) -> None:
        """Let the runner drop what it holds for sources that have lost their blocks."""
        for key in self.blocks.take_lost_sources():
            self._runner.release_source(key)

    def _learn(self, batch: Batch, step_s: float) -> None:
        num_drafted, num_source_tokens = batch.num_drafted, batch.num_source_tokens
        num_prompt_tokens = batch.num_tokens - num_drafted - batch.num_growing - num_source_tokens
        is_mixed = batch.num_growing and (num_prompt_tokens or num_source_tokens)
        if self._token_budget is not None and not num_drafted and not is_mixed:
            self._token_budget.observe(batch.num_tokens, step_s, is_growth=batch.num_growing > 0)
        if self._pacing is None:
            return
        self._pacing.observe(
            batch.num_growing,
            num_prompt_tokens,
            step_s,
            num_source_tokens=num_source_tokens,
            has_drafts=num_drafted > 0,
        )
        if self._drafter is not None and num_drafted:
            self._drafter.observe(batch.num_growing, num_drafted, step_s)

    def _go_on(self, group: SequenceGroup, step: BeamStep) -> list[Tokens]:
        """The rows of a beam search become those that were chosen. What can be told by now."""
        assert group.search is not None
        if group.search.is_done:
            self.scheduler.finish(group)
            return replies.of_results(group)
        sequences = self.scheduler.reproduce(group, step.parents)
        for sequence, token_id in zip(sequences, step.token_ids, strict=True):
            sequence.append(token_id)
        return replies.of_agreed(group)

    def _take_compiled(self, uncompiled: GrammarQueue) -> None:
        ready, failed = uncompiled.take_ready(is_idle=not self._has_requests)
        for command, grammar in ready:
            self._queue(command, grammar)
        self._replies += failed

    def _follow_adapters(self) -> None:
        """Begin the requests whose adapters are held by now; read, hold and give up adapters."""
        # Those of the last step: the front has been sent that they were read, and blames a crash on no reading.
        ready, failed = self._absent.take_ready()
        for command, grammar, adapter in ready:
            self._queue(command, grammar, adapter)
        self._replies += failed
        self._adapters.advance(self._adapters_in_use, self._absent.digests, self._try, is_idle=not self._has_requests)

    def _adapters_in_use(self) -> list[FittedAdapter]:
        return [context.fitted for context in self.scheduler.contexts if context.fitted is not None]

    def _try(self, adapter: FittedAdapter) -> bool:
        """A step with a new adapter; False while there are no blocks for it."""
        blocks = self.blocks.lend(num_blocks(adapter, self.blocks.block_size))
        try:
            if blocks:
                try_step(self._runner, adapter, blocks)
        finally:
            self.blocks.take_back(blocks)
        return bool(blocks)

    def _end_in_time(self, request_id: str) -> None:
        """Answer with what there is by now; nothing happens if the request has ended."""
        group = self.scheduler.find(request_id)
        if group is not None and group.has_begun:
            self._replies += replies.of_time_out(group)
        elif group is not None or self._is_waiting_outside(request_id):
            self._fail(request_id, DeadlineExceeded.code, str(DeadlineExceeded()))
        self._forget(request_id)

    def _is_waiting_outside(self, request_id: str) -> bool:
        """Of the scheduler, for a grammar or an adapter."""
        return request_id in self._absent or request_id in (self._uncompiled or ())

    def _forget(self, request_id: str) -> None:
        self.scheduler.abort(request_id)
        self._release_sources()
        self._absent.abort(request_id)
        if self._uncompiled:
            self._uncompiled.abort(request_id)

    def _queue(self, command: Generate, grammar: Grammar | None = None, adapter: FittedAdapter | None = None) -> None:
        """``adapter`` is the one that the request names, where it had to wait for it."""
        if command.adapter and adapter is None:
            adapter = self._absent.take_or_add(command, grammar)
            if adapter is None:
                return
        group = SequenceGroup(
            command,
            max_model_len=self._max_model_len,
            block_size=self._runner.block_size,
            order=self._num_arrivals,
            vocabulary=self._vocabulary,
            grammar=grammar,
            adapter=adapter,
        )
        if group.num_rows > self._max_rows:
            message = f"The request needs {group.num_rows} rows and a step has at most {self._max_rows}."
            self._fail(command.request_id, InsufficientMemory.code, message)
        elif not self.scheduler.fits_alone(group):
            most = group.num_input_tokens - group.num_prompt_tokens + group.sequences[0].stopping.max_tokens
            message = (
                f"The request may grow to {most} tokens and the cache holds "
                f"{self.blocks.num_blocks * self.blocks.block_size}. Ask for fewer tokens."
            )
            self._fail(command.request_id, InsufficientMemory.code, message)
        else:
            self._begin(group)

    def _begin(self, group: SequenceGroup) -> None:
        """Queue the outputs that need further tokens: of a resumed one, the end may be all that is left."""
        for sequence in list(group.sequences):
            if finish_reason := sequence.finish_reason:
                group.remove(sequence)
                reply = replies.of_sequence(group, sequence, finish_reason)
                assert reply is not None
                self._replies.append(reply)
        if group.sequences:
            self._num_arrivals += 1
            self.scheduler.add(group)

    def _problem(self, command: Generate) -> str | None:
        return checks.problem(
            command,
            vocab_size=self._runner.vocab_size,
            max_model_len=self._max_model_len,
            max_source_len=self._max_source_len,
            source_vocab_size=self._runner.source_vocab_size,
            adapters=self._adapters,
            has_vocabulary=self._vocabulary is not None,
        )

    def _fail(self, request_id: str, code: str, message: str) -> None:
        self._replies.append(Failed(request_id, code, message))


def _row(share: Share) -> Row:
    sequence = share.sequence
    assert sequence.key is not None
    start = sequence.num_computed_tokens
    token_ids = sequence.token_ids[start : start + share.num_new_tokens]
    return Row(
        key=sequence.key,
        token_ids=token_ids if share.draft_ids is None else np.concatenate([token_ids, share.draft_ids]),
        num_computed=start,
        block_table=sequence.block_table[: sequence.num_blocks],
        num_logits=share.num_logits,
        deciding_length=sequence.deciding_length,
        context=sequence.context,
    )
