"""Text in, text out, for models that generate; knows neither HTTP nor tensors."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Any

import msgspec

from server import caller, metrics
from server.client.adapters import AdapterVersion
from server.client.worker_client import WorkerClient
from server.config import ModelConfig, ServeConfig
from server.errors import DeadlineExceeded, InvalidRequest, NoTokenLeft, SluiceError
from server.protocol import Generate, Ready, Tokens
from server.serving.admission import Admission
from server.serving.generation import Generation
from server.serving.options.reading import model_defaults, task_defaults
from server.serving.options.rules import FORBIDDING
from server.serving.options.table import MAX_STOP_STRINGS, GenerateOptions
from server.serving.origin import Origin
from server.serving.output_text import OutputToken, unfinished
from server.serving.prompt import Prompt
from server.serving.prompts import PromptMaker, PromptSource
from server.serving.ranking import LabelScorer, rank
from server.serving.record import RequestRecord
from server.serving.services import Services
from server.serving.side_by_side import side_by_side
from server.text.languages import Direction, describe_languages
from server.text.tokenizer import tokenizer_of

log = logging.getLogger("sluice.serving")


class ServedGenerator:
    """One generating model, as clients see it."""

    origin: Origin
    """Set by the registry."""

    def __init__(
        self,
        config: ServeConfig,
        model: ModelConfig,
        ready: Ready,
        worker: WorkerClient,
        admission: Admission,
        services: Services,
        *,
        adapter: AdapterVersion | None = None,
    ) -> None:
        """``adapter`` of the worker's model is served, which is held as long as any of its requests runs."""
        self.config = config
        self.name = model.name
        self.ready = ready
        self.worker = worker
        self.admission = admission
        self.adapter = adapter
        self.tokenizer = tokenizer_of(ready.tokenizer, ready.vocab_size, ready.source_vocab_size)
        self._classifiers = services.classifiers
        sound, problems = model_defaults(ready)
        self._prompts = PromptMaker(config, ready, sound, self.tokenizer, services)
        self._defaults = {k: v for k, v in ready.generation_config.items() if k in sound or k == "end_token_ids"}
        self._warn("generation_config.json", problems)
        self.summary_defaults = self._task_defaults("summarization", ready.summary_options)
        """Options that the model sets for summaries, before its other defaults."""
        self._any_translation_defaults: Mapping[str, Any] = self._task_defaults(
            "translation", ready.translation_options
        )
        self._translation_defaults = {
            (pair.source, pair.target): self._task_defaults(f"translation_{pair.source}_to_{pair.target}", pair.options)
            for pair in (ready.languages.pairs if ready.languages else [])
        }

    def translation_defaults(self, direction: Direction) -> Mapping[str, Any]:
        """Options that the model sets for these languages, before its other defaults."""
        source, target = (language.code if language else "" for language in (direction.source, direction.target))
        return self._translation_defaults.get((source, target), self._any_translation_defaults)

    def _task_defaults(self, task: str, options: Mapping[str, Any]) -> dict[str, Any]:
        values, problems = task_defaults(options, self.ready)
        self._warn(f"task_specific_params.{task}", problems)
        return values

    def _warn(self, place: str, problems: Sequence[InvalidRequest]) -> None:
        for problem in problems:
            log.warning("model %s: %s is ignored in part: %s", self.name, place, problem.message)

    def describe(self) -> dict[str, Any]:
        return {
            **self._describe_source(),
            "max_total_tokens": self.ready.max_model_len,
            "max_input_tokens": self.ready.max_source_len or self.ready.max_model_len - 1,
            "default_max_new_tokens": self._default_max_new_tokens(),
            "max_stop_sequences": MAX_STOP_STRINGS,
            "vocab_size": self.ready.vocab_size,
            "has_chat_template": self.ready.tokenizer.chat_template is not None,
            "generation_config": self._defaults,
        }

    def _default_max_new_tokens(self) -> int:
        """After the shortest prompt; a model's max_length counts the tokens that an output follows."""
        length, usual = self._defaults.get("max_length"), self._defaults.get("max_new_tokens")
        if isinstance(length, int):
            return max(1, min(length, self.ready.max_model_len) - len(self.ready.start_ids))
        return usual if isinstance(usual, int) and usual else self.config.default_max_new_tokens

    def _describe_source(self) -> dict[str, Any]:
        """Of an encoder-decoder model: what it can be asked to do."""
        if not self.ready.max_source_len:
            return {}
        tasks = self.ready.rewriting_tasks
        found = {
            "can_translate": "translation" in tasks,
            "can_summarize": "summarization" in tasks,
            "can_answer": self.ready.can_answer,
        }
        return {**found, **describe_languages(self.ready.languages)} if self.ready.languages else found

    async def prepare(self, source: PromptSource, options: GenerateOptions) -> list[Prompt]:
        """All of the client's prompts, ready; whatever can be refused is refused here."""
        self.admission.check()
        return await self._prompts.make(source, options)

    def start(self, prompt: Prompt) -> Generation:
        return Generation(self.tokenizer.target, prompt)

    def stream(self, generation: Generation, record: RequestRecord) -> AsyncGenerator[list[OutputToken], None]:
        """New tokens as they come. Closing the generator gives back blocks and permit."""
        permit = self.admission.admit(generation.prompt.cost)
        return self._steps(generation, record.request_id, record, permit=permit)

    async def stream_all(
        self, generations: Sequence[Generation], record: RequestRecord
    ) -> AsyncGenerator[tuple[int, list[OutputToken]], None]:
        """New tokens of several as they come, with the number of their generation; one failure ends them all."""
        with self.admission.admit(sum(g.prompt.cost for g in generations), len(generations)):
            streams = [
                self._steps(g, f"{record.request_id}-{i}", record, is_alone=False) for i, g in enumerate(generations)
            ]
            async with aclosing(side_by_side(streams)) as steps:
                async for step in steps:
                    yield step

    async def generate(self, generations: Sequence[Generation], record: RequestRecord) -> list[list[OutputToken]]:
        """Run all to their ends, side by side, and return each one's tokens; the first failure ends them all."""
        with self.admission.admit(sum(g.prompt.cost for g in generations), len(generations)):
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(
                            self._run(generation, f"{record.request_id}-{i}", record, is_alone=len(generations) == 1)
                        )
                        for i, generation in enumerate(generations)
                    ]
            except BaseExceptionGroup as failed:
                raise failed.exceptions[0] from None
            if not any(generation.num_tokens for generation in generations) and _has_timed_out(generations):
                raise DeadlineExceeded
        for generation in generations:
            await self._rank(generation, record)
        return [task.result() for task in tasks]

    async def _rank(self, generation: Generation, record: RequestRecord) -> None:
        prompt = generation.prompt
        if prompt.is_ranked:
            rank_by = prompt.options.rank_by
            scorer = None if rank_by is None else LabelScorer.find(rank_by, self._classifiers)
            await rank(generation, scorer, record)

    async def _run(
        self, generation: Generation, request_id: str, record: RequestRecord, *, is_alone: bool
    ) -> list[OutputToken]:
        async with aclosing(self._steps(generation, request_id, record, is_alone=is_alone)) as steps:
            return [token async for tokens in steps for token in tokens]

    async def _steps(
        self,
        generation: Generation,
        request_id: str,
        record: RequestRecord,
        *,
        is_alone: bool = True,
        permit: AbstractContextManager[None] | None = None,
    ) -> AsyncGenerator[list[OutputToken], None]:
        """What each step yields, as tokens with texts, until every output is finished; times and counts are noted.

        Where a request has several prompts, one that had no token in time is answered empty. ``permit`` is held
        meanwhile.
        """
        with permit or nullcontext():
            record.prompt_tokens += len(generation.prompt.input_ids)
            clock = _Clock(self.name, generation, record)
            try:
                command = self._command(generation.prompt, request_id, record)
                unwanted = None if len(generation.outputs) == 1 else lambda: generation.samples_at_end
                async with aclosing(self.worker.stream(command, clock.note_start, unwanted)) as replies:
                    async for messages in replies:
                        clock.note_tokens(messages)
                        tokens = generation.add(messages)
                        if generation.is_finished:
                            break
                        if tokens:
                            yield tokens
                    else:
                        raise unfinished("error")
                # The worker's stream is closed first: a stop string frees the blocks before the last text leaves.
                yield tokens
            except DeadlineExceeded:
                if is_alone:
                    generation.has_failed = True
                    raise
                yield generation.end_in_time()
            except SluiceError as error:
                generation.has_failed = True
                if isinstance(error, NoTokenLeft):
                    error.name_fields([name for name in FORBIDDING if name in generation.prompt.parameters])
                raise
            finally:
                record.output_tokens += generation.num_tokens
                record.cached_tokens += generation.cached_tokens
                record.finish_reason = generation.finish_reason

    def _command(self, prompt: Prompt, request_id: str, record: RequestRecord) -> Generate:
        who = caller.current()
        return Generate(
            request_id,
            prompt.ids,
            prompt.params,
            tenant="" if self.config.share_prefix_cache else who.tenant,
            adapter="" if self.adapter is None else self.adapter.digest,
            caller=who.id,
            deadline_s=self._deadline_s(prompt, record),
            **msgspec.structs.asdict(prompt.context),
        )

    def _deadline_s(self, prompt: Prompt, record: RequestRecord) -> float | None:
        """On the monotonic clock. Raises DeadlineExceeded if it has passed."""
        left_s = record.time_left_s(prompt.options.max_time, self.config.request_timeout_s)
        if left_s is not None and left_s <= 0:
            raise DeadlineExceeded
        return None if left_s is None else time.monotonic() + left_s


def _has_timed_out(generations: Sequence[Generation]) -> bool:
    return any(output.finish_reason == "max_time" for generation in generations for output in generation.outputs)


class _Clock:
    """Notes when tokens come: for the generation's own details, its request's record, and the metrics."""

    def __init__(self, model: str, generation: Generation, record: RequestRecord) -> None:
        self._model = metrics.label_of(model)
        self._timings = generation.timings
        self._record = record
        self._last_s: float | None = None
        # Looked up once: that takes longer than the observation, which is made for every token.
        self._gaps = metrics.INTER_TOKEN_GAP.labels(self._model)

    def note_start(self) -> None:
        self._timings.note_start()
        self._record.note_start()

    def note_tokens(self, messages: Sequence[Tokens]) -> None:
        """Outputs that grow side by side have one gap."""
        # One, nearly always.
        num_tokens = (
            len(messages[0].token_ids) if len(messages) == 1 else max([len(m.token_ids) for m in messages], default=0)
        )
        if not num_tokens:
            return
        now_s = time.perf_counter()
        if self._last_s is not None:
            self._gaps.observe((now_s - self._last_s) / num_tokens)
        else:
            self._note_first(now_s - self._record.started_s)
        self._last_s = now_s

    def _note_first(self, first_s: float) -> None:
        self._timings.note_tokens()
        metrics.observe_first_token(self._model, first_s)
        known_s = self._record.ttft_s
        self._record.ttft_s = first_s if known_s is None else min(known_s, first_s)
