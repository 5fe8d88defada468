"""The decoder engine: commands in, one step at a time, replies out. Token ids only; knows neither text nor sockets.

One step: the scheduler chooses the work, the runner computes it, the sampler chooses tokens, the rules of `stopping`
end sequences. Beams will be ranked where `_choose` samples, an adapter's id will travel in `Row`.
"""

from __future__ import annotations

from time import perf_counter

import torch

from server.engine.batch_inputs import Row
from server.engine.block_manager import BlockManager
from server.engine.model_runner import ModelRunner
from server.engine.sampler import Sampler
from server.engine.scheduler import Batch, Scheduler, Share
from server.engine.sequence import Sequence
from server.errors import InsufficientMemory, NumericalError, SluiceError
from server.protocol import Encode, Failed, FinishReason, Generate, Reply, Stats, Tokens


def default_max_batch_tokens(device: torch.device, max_running: int) -> int:
    """A token budget that keeps one step, and so the gap in every running stream, short on the device."""
    return max(256 if device.type == "cpu" else 2048, max_running)


class DecoderEngine:
    """Continuous batching of sequences over one `ModelRunner`."""

    def __init__(
        self, runner: ModelRunner, *, max_model_len: int, max_batch_tokens: int, max_running: int, prefix_cache: bool
    ) -> None:
        self._runner = runner
        self._max_model_len = max_model_len
        self.blocks = BlockManager(
            runner.num_blocks, runner.block_size, prefix_cache=prefix_cache and runner.can_reuse_blocks
        )
        self.scheduler = Scheduler(
            self.blocks, max_batch_tokens=max_batch_tokens, max_running=max_running, release=runner.release
        )
        self._sampler = Sampler()
        self._replies: list[Reply] = []
        """Answers that need no step, sent with the next one."""
        self._num_arrivals = 0

    @property
    def has_work(self) -> bool:
        return bool(self._replies or self.scheduler.num_running or self.scheduler.num_waiting)

    def add(self, command: Generate | Encode) -> None:
        """Queue a sequence. What cannot be served is answered `Failed` in the next step."""
        if not isinstance(command, Generate):
            self._fail(command.request_id, SluiceError.code, "This model generates text and does not encode it.")
        elif problem := self._problem(command):
            self._fail(command.request_id, SluiceError.code, problem)
        else:
            self._queue(command)

    def abort(self, request_id: str) -> None:
        """Forget a request and free its blocks at once."""
        self._replies = [reply for reply in self._replies if getattr(reply, "request_id", None) != request_id]
        self.scheduler.abort(request_id)

    @torch.inference_mode()
    def step(self) -> list[Reply]:
        """Compute one batch. The last reply is `Stats`."""
        start = perf_counter()
        replies, self._replies = self._replies, []
        batch = self.scheduler.schedule()
        num_prompt_tokens = sum(share.num_prompt_tokens for share in batch.shares)
        forward_s = self._compute(batch, replies) if batch.shares else 0.0
        replies.append(
            Stats(
                num_running=self.scheduler.num_running,
                num_waiting=self.scheduler.num_waiting,
                num_blocks_used=self.blocks.num_used,
                batch_size=len(batch.shares),
                batch_tokens=sum(share.num_new_tokens for share in batch.shares),
                prompt_tokens=num_prompt_tokens,
                prefix_hit_tokens=sum(sequence.num_cached_tokens or 0 for sequence in batch.started),
                prefix_query_tokens=sum(sequence.num_prompt_tokens for sequence in batch.started),
                num_preemptions=batch.num_preemptions,
                step_s=perf_counter() - start,
                forward_s=forward_s,
                started=[sequence.request_id for sequence in batch.started],
            )
        )
        return replies

    def check(self) -> None:
        """Raise if an invariant of blocks or queues fails. For tests."""
        self.scheduler.check()

    def _compute(self, batch: Batch, replies: list[Reply]) -> float:
        """Run the batch, choose tokens and answer. Returns the seconds of the forward pass."""
        rows = [_row(share) for share in batch.shares]
        start = perf_counter()
        logits_BV = self._runner.forward(rows)
        forward_s = perf_counter() - start
        self.scheduler.computed(batch)
        sequences = [share.sequence for share in batch.shares]
        # Also where the prompt goes on, and the token means nothing: what is not finite must be known before others
        # can find it in the cache.
        sampled = self._sampler.sample(logits_BV, sequences)
        for sequence, is_finite in zip(sequences, sampled.is_finite, strict=True):
            if not is_finite:
                self._discard(sequence, replies)
        # Only now: what a failed sequence computed must not become a prefix of others.
        for sequence in sequences:
            self.blocks.publish(sequence)
        for i, sequence in enumerate(sequences):
            if sampled.is_finite[i] and sequence.num_new_tokens == 0:
                logprobs = [sampled.logprobs[i]] if sequence.params.logprobs else None
                replies.append(self._accept(sequence, sampled.token_ids[i], logprobs))
        return forward_s

    def _accept(self, sequence: Sequence, token_id: int, logprobs: list[float] | None) -> Tokens:
        """Take a chosen token; end the sequence if it ends here."""
        sequence.append(token_id)
        finish_reason = sequence.stopping.finish_reason(token_id, sequence.num_tokens)
        if finish_reason is not None:
            self.scheduler.finish(sequence)
        num_cached_tokens = None if sequence.has_replied else sequence.num_cached_tokens
        sequence.has_replied = True
        return Tokens(
            request_id=sequence.request_id,
            token_ids=[token_id],
            finish_reason=finish_reason,
            logprobs=logprobs,
            num_cached_tokens=num_cached_tokens,
        )

    def _discard(self, sequence: Sequence, replies: list[Reply]) -> None:
        """End a sequence whose logits are not finite, with everything it left in the cache."""
        if blocks := self.scheduler.discard(sequence):
            self._runner.clear_blocks(blocks)
        message = "The model's output for this request was not finite. Other requests are not affected."
        replies.append(Failed(sequence.request_id, NumericalError.code, message))

    def _queue(self, command: Generate) -> None:
        sequence = Sequence(
            command,
            max_model_len=self._max_model_len,
            block_size=self._runner.block_size,
            order=self._num_arrivals,
        )
        if finish_reason := _already_finished(sequence):
            self._replies.append(Tokens(command.request_id, [], finish_reason))
        elif not self.scheduler.fits_alone(sequence):
            self._fail(
                command.request_id,
                InsufficientMemory.code,
                f"The request may grow to {sequence.stopping.max_tokens} tokens and the cache holds "
                f"{self.blocks.num_blocks * self.blocks.block_size}. Ask for fewer tokens.",
            )
        else:
            self._num_arrivals += 1
            self.scheduler.add(sequence)

    def _problem(self, command: Generate) -> str | None:
        """What makes a command impossible, as a sentence. The front has checked: this is the second line."""
        if command.request_id in self.scheduler:
            return "A request with this id is running already."
        if not command.prompt_ids:
            return "The prompt has no tokens."
        if command.params.max_new_tokens < 1:
            return f"max_new_tokens is {command.params.max_new_tokens}: it must be at least 1."
        vocab_size = self._runner.vocab_size
        outputs = [output.token_ids for output in command.outputs]
        for token_ids in (command.prompt_ids, *outputs):
            if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
                return f"A token id is outside the model's vocabulary of {vocab_size}."
        num_tokens = len(command.prompt_ids) + max(map(len, outputs), default=0)
        if num_tokens > self._max_model_len or len(command.prompt_ids) >= self._max_model_len:
            return f"The request has {num_tokens} tokens and the model takes at most {self._max_model_len}."
        return None

    def _fail(self, request_id: str, code: str, message: str) -> None:
        self._replies.append(Failed(request_id, code, message))


def _row(share: Share) -> Row:
    sequence, num_new_tokens = share
    assert sequence.key is not None
    start = sequence.num_computed_tokens
    return Row(
        key=sequence.key,
        token_ids=sequence.token_ids[start : start + num_new_tokens],
        num_computed=start,
        block_table=sequence.block_table[: sequence.num_blocks],
    )


def _already_finished(sequence: Sequence) -> FinishReason | None:
    """Why a resumed request needs no further token, if so: its last token was sent, its end was not."""
    output_ids = sequence.output_ids
    return sequence.stopping.finish_reason(output_ids[-1], sequence.num_tokens) if output_ids else None
