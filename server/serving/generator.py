"""Text in, text out, for models that generate; knows neither HTTP nor tensors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from server import metrics
from server.client.worker_client import WorkerClient
from server.config import ModelConfig, ServeConfig
from server.errors import BatchTooLarge, InvalidParameter, SluiceError
from server.protocol import FinishReason, Generate, Ready, SamplingParams, Tokens
from server.serving import sampling
from server.serving.admission import Admission
from server.serving.record import RequestRecord
from server.serving.sampling import GenerateOptions
from server.text.detokenizer import Detokenizer
from server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text, ready to be generated from."""

    text: str
    ids: list[int]
    params: SamplingParams
    stop: tuple[str, ...]

    @property
    def cost(self) -> int:
        """Most tokens of work that it can become."""
        return len(self.ids) + self.params.max_new_tokens


@dataclass(frozen=True, slots=True)
class OutputToken:
    """One new token and the text that it made safe to send."""

    id: int
    text: str
    """Often empty: a character or a possible stop string is not complete."""
    special: bool
    logprob: float | None


class Generation:
    """One prompt's output as it grows."""

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt) -> None:
        self.prompt = prompt
        self.num_tokens = 0
        self.cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.ended_by_end_token = False
        """Of a finish reason ``stop``: the model ended it, not the client's stop string or stop token."""
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, prompt.ids, prompt.stop)
        self._texts: list[str] = []
        self._last_id: int | None = None

    @property
    def text(self) -> str:
        """All text so far that is safe to send."""
        return "".join(self._texts)

    def add(self, reply: Tokens) -> list[OutputToken]:
        """The reply's tokens with their texts. What follows a stop string is dropped."""
        self.cached_tokens = reply.num_cached_tokens or self.cached_tokens
        logprobs: Sequence[float | None] = reply.logprobs or [None] * len(reply.token_ids)
        tokens = []
        for i, (token_id, logprob) in enumerate(zip(reply.token_ids, logprobs, strict=True), start=1):
            is_last = i == len(reply.token_ids)
            tokens.append(self._add_token(token_id, logprob, reply.finish_reason if is_last else None))
            if self.finish_reason is not None:
                return tokens
        # A request that is resumed at its very end: the last token came before, and only the finish reason now.
        return tokens if reply.finish_reason is None else [self._add_end(reply.finish_reason)]

    def _add_token(self, token_id: int, logprob: float | None, finish_reason: FinishReason | None) -> OutputToken:
        self.num_tokens += 1
        self._last_id = token_id
        text = "" if finish_reason == "stop" else self._detokenizer.push(token_id)
        if self._detokenizer.stop_string is None and finish_reason is not None:
            text += self._end(finish_reason)
        return self._output_token(token_id, text, logprob)

    def _add_end(self, finish_reason: FinishReason) -> OutputToken:
        """The end as a token, for clients know no event without one; it is not counted."""
        end_id = next(iter(self.prompt.params.end_token_ids), 0)
        return self._output_token(end_id, self._end(finish_reason), None)

    def _end(self, finish_reason: FinishReason) -> str:
        """The text that was held back until now."""
        if finish_reason not in ("stop", "length"):
            raise _unfinished(finish_reason)
        self.finish_reason = finish_reason
        self.ended_by_end_token = finish_reason == "stop" and self._last_id in self.prompt.params.end_token_ids
        return self._detokenizer.finish()

    def _output_token(self, token_id: int, text: str, logprob: float | None) -> OutputToken:
        if self._detokenizer.stop_string is not None:
            self.finish_reason, self.ended_by_end_token = "stop", False
        self._texts.append(text)
        # Clients leave out the text of special tokens; what was held back until now must reach them.
        is_special = token_id in self._tokenizer.special_ids
        return OutputToken(token_id, text, is_special and not text, logprob)


def _unfinished(finish_reason: FinishReason) -> SluiceError:
    if finish_reason == "abort":
        return SluiceError("The request was ended: its output was not read in time.")
    return SluiceError("The request could not be finished.")


class ServedGenerator:
    """One generating model, as clients see it."""

    def __init__(
        self, config: ServeConfig, model: ModelConfig, ready: Ready, worker: WorkerClient, admission: Admission
    ) -> None:
        self.config = config
        self.name = model.name
        self.ready = ready
        self.worker = worker
        self.admission = admission
        self.tokenizer = Tokenizer(ready.tokenizer, ready.vocab_size)

    def describe(self) -> dict[str, Any]:
        return {
            "max_total_tokens": self.ready.max_model_len,
            "max_input_tokens": self.ready.max_model_len - 1,
            "default_max_new_tokens": self.ready.generation_config.get("max_new_tokens")
            or self.config.default_max_new_tokens,
            "max_stop_sequences": sampling.MAX_STOP_STRINGS,
            "vocab_size": self.ready.vocab_size,
            "generation_config": self.ready.generation_config,
        }

    async def prepare(self, texts: Sequence[str], options: GenerateOptions) -> list[Prompt]:
        """Check and tokenise. All prompts share one seed, so that each gives what it would give alone."""
        self.admission.check()
        if not texts:
            raise InvalidParameter("inputs", list(texts), "must hold at least one text")
        if len(texts) > self.config.max_batch_inputs:
            raise BatchTooLarge(len(texts), self.config.max_batch_inputs)
        sampling.check(options, self.ready)
        seed = sampling.choose_seed(options)
        stop_token_ids = (options.stop_token_ids or ()) + self._special_stops(options.stop or ())
        options = replace(options, stop_token_ids=stop_token_ids)
        return await asyncio.to_thread(lambda: [self._prompt(text, options, seed) for text in texts])

    def _special_stops(self, stop: Sequence[str]) -> tuple[int, ...]:
        """Special tokens have no text for a stop string to be found in: ``<|im_end|>`` ends the output as a token."""
        ids = (self.tokenizer.backend.token_to_id(string) for string in stop)
        return tuple(id_ for id_ in ids if id_ in self.tokenizer.special_ids and id_ < self.ready.vocab_size)

    def _prompt(self, text: str, options: GenerateOptions, seed: int) -> Prompt:
        ids = self._prompt_ids(text, options.truncate)
        if not ids:
            raise InvalidParameter("inputs", text, "must have at least one token")
        resolved = sampling.resolve(
            options,
            self.ready,
            num_prompt_tokens=len(ids),
            default_max_new_tokens=self.config.default_max_new_tokens,
            seed=seed,
            tokenizer=self.tokenizer,
        )
        return Prompt(text, ids, resolved.params, resolved.options.stop or ())

    def _prompt_ids(self, text: str, truncate: int | None) -> list[int]:
        """The text's tokens, with the special tokens that the model's tokenizer puts around a text."""
        encoding = self.tokenizer.encode(text)
        ids: list[int] = encoding.ids
        if truncate is None or len(ids) <= truncate:
            return ids
        num_leading = next((i for i, special in enumerate(encoding.special_tokens_mask) if not special), 0)
        kept = ids[: min(num_leading, truncate - 1)]
        return kept + ids[len(ids) - (truncate - len(kept)) :]

    def start(self, prompt: Prompt) -> Generation:
        return Generation(self.tokenizer, prompt)

    async def stream(self, generation: Generation, record: RequestRecord) -> AsyncGenerator[list[OutputToken], None]:
        """New tokens as they come. Closing the generator gives back blocks and permit."""
        with self.admission.admit(generation.prompt.cost):
            async with aclosing(self._replies(generation, record.request_id, record)) as replies:
                async for tokens in replies:
                    yield tokens

    async def generate(self, generations: Sequence[Generation], record: RequestRecord) -> list[list[OutputToken]]:
        """Run all to their ends, side by side, and return each one's tokens; the first failure ends them all."""
        with self.admission.admit(sum(g.prompt.cost for g in generations), len(generations)):
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._run(generation, f"{record.request_id}-{i}", record))
                        for i, generation in enumerate(generations)
                    ]
            except BaseExceptionGroup as failed:
                raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _run(self, generation: Generation, request_id: str, record: RequestRecord) -> list[OutputToken]:
        async with aclosing(self._replies(generation, request_id, record)) as replies:
            return [token async for tokens in replies for token in tokens]

    async def _replies(
        self, generation: Generation, request_id: str, record: RequestRecord
    ) -> AsyncGenerator[list[OutputToken], None]:
        """The worker's replies as tokens with texts, until one finishes the generation; times and counts are noted."""
        prompt = generation.prompt
        record.prompt_tokens += len(prompt.ids)
        last_s: float | None = None
        command = Generate(request_id, prompt.ids, prompt.params)
        try:
            async with aclosing(self.worker.stream(command, on_start=record.note_start)) as replies:
                async for [reply] in replies:
                    if reply.token_ids:
                        last_s = self._observe(record, last_s, len(reply.token_ids))
                    tokens = generation.add(reply)
                    if generation.finish_reason is not None:
                        break
                    if tokens:
                        yield tokens
                else:
                    raise _unfinished("error")
            # The worker's stream is closed first: a stop string frees the blocks before the last text leaves.
            yield tokens
        except SluiceError:
            generation.finish_reason = "error"
            raise
        finally:
            record.output_tokens += generation.num_tokens
            record.cached_tokens += generation.cached_tokens
            record.finish_reason = generation.finish_reason or "abort"

    def _observe(self, record: RequestRecord, last_s: float | None, num_tokens: int) -> float:
        now_s = time.perf_counter()
        if last_s is not None:
            metrics.observe_gap(self.name, (now_s - last_s) / num_tokens)
        else:
            first_s = now_s - record.started_s
            metrics.observe_first_token(self.name, first_s)
            record.ttft_s = first_s if record.ttft_s is None else min(record.ttft_s, first_s)
        return now_s
